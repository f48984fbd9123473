"""The report: what it says and shows, as a web page in one file and as Markdown."""

import base64
import collections
import dataclasses
import datetime
import html
import shutil
from collections.abc import Sequence
from pathlib import Path

from ad_keras.evaluation.features import short_name
from ad_keras.evaluation.plots import readable
from ad_keras.evaluation.published import LINEAR_SEPARABILITY
from ad_keras.reproduction import findings, pictures
from ad_keras.reproduction.config import ReproduceConfig
from ad_keras.reproduction.findings import TITLES, Finding, Measurements
from ad_keras.runs.config import Config
from ad_keras.runs.folder import write_atomically

_OTHER_TILES = (1, 2, 8)
_KINDS = ("reconstructions", "nrem_replayed", "nrem", "rem")

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ line-height: 1.2; }}
h2 {{ margin-top: 3rem; border-bottom: 1px solid #ccc; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; }}
td {{ white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
thead th {{ border-bottom: 2px solid #888; vertical-align: bottom; }}
caption, figcaption {{ text-align: left; color: #444; font-size: 0.9rem; }}
figure {{ margin: 1rem 0; }}
.row {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; }}
img {{ max-width: 100%; height: auto; }}
p.finding {{ border-left: 4px solid; padding: 0.2rem 0.8rem; margin: 0.6rem 0; }}
p.agrees {{ border-color: #0072b2; }}
p.disagrees {{ border-color: #d55e00; }}
p.open {{ border-color: #999; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1rem; }}
dt {{ color: #444; }}
dd {{ margin: 0; }}
pre {{ background: #f3f3f3; padding: 0.6rem 0.8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
_LOOKS = {findings.AGREES: "agrees", findings.DISAGREES: "disagrees"}


@dataclasses.dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Lines of cells; those of the first column name the lines."""

    caption: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG with its file's name, without suffix, and what it shows."""

    name: str
    png: bytes
    caption: str


@dataclasses.dataclass(frozen=True)
class Row:
    """Pictures side by side."""

    pictures: Sequence[Picture]


@dataclasses.dataclass(frozen=True)
class Facts:
    """Short texts with their names."""

    items: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line."""

    text: str


Block = Heading | Text | Table | Picture | Row | Facts | Command | Finding


def write_report(
    flags: ReproduceConfig,
    measured: Measurements,
    shown: Config,
    folders: dict[str, Path],
    command: str,
) -> None:
    """Writes `report.html`, `report.md` and its `pictures/`.

    Args:
        flags: of the reproduction.
        measured: all that was measured.
        shown: the run whose dreams are shown.
        folders: by condition, of the run whose map of latents is shown.
        command: the command line that made the report.
    """
    blocks = [
        *_table_1(flags, measured),
        *_figure_3(measured, shown),
        *_figure_4(measured),
        *_figure_5(measured),
        *_figure_6(measured, folders),
        *_losses(measured),
    ]
    title = f"Perturbed and adversarial dreaming on {short_name(flags.dataset)}"
    blocks = [*_head(flags, measured, command, blocks), *blocks]
    folder = flags.report_path
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    (folder / "pictures").mkdir(parents=True)
    for picture in _all_pictures(blocks):
        (folder / "pictures" / f"{picture.name}.png").write_bytes(picture.png)
    write_atomically(folder / "report.md", to_markdown(title, blocks))
    write_atomically(folder / "report.html", to_html(title, blocks))


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """A page in one file, with its pictures inside and nothing outside.

    Args:
        title: of the page.
        blocks: of the report.
    """
    body = [f"<h1>{html.escape(title)}</h1>", *map(_html_of, blocks)]
    return _PAGE.format(title=html.escape(title), body="\n".join(body))


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """Markdown, for which the pictures lie in `pictures/`.

    Args:
        title: of the report.
        blocks: of the report.
    """
    return "\n\n".join([f"# {title}", *map(_markdown_of, blocks)]) + "\n"


def _head(
    flags: ReproduceConfig, measured: Measurements, command: str, blocks: Sequence[Block]
) -> list[Block]:
    first = next(iter(measured.results.values()))[0]
    protocol = first["metrics"]["probe"]["protocol"]
    trained_on = flags.train_examples or protocol["train_images"]
    facts = {
        "Data": f"{flags.dataset}: training on {trained_on:,} images, probes fitted on "
        f"{protocol['train_images']:,}, tested on {protocol['test_images']:,}",
        "Conditions": ", ".join(TITLES[name] for name in measured.results),
        "Epochs": f"{flags.epochs} (the paper: 50)",
        "Networks": f"{flags.base_filters} filters in the first convolution (the paper: 64), "
        f"latents of {flags.latent_dim} (256), images of {flags.image_size} x {flags.image_size} "
        f"pixels, mini-batches of {flags.batch_size} (64)",
        "Seeds": f"{', '.join(flags.seeds)} (the paper: 4 seeds)",
        "Precision of training": flags.precision,
        "Date": datetime.datetime.now().strftime("%Y-%m-%d"),
        "Versions": ", ".join(f"{name} {version}" for name, version in first["versions"].items()),
    }
    counts = collections.Counter(block.verdict for block in blocks if isinstance(block, Finding))
    total = sum(counts.values())
    verdicts = (findings.AGREES, findings.DISAGREES, findings.UNDECIDED, findings.NOT_JUDGED)
    return [
        Text(
            "A reproduction of Deperrois, Petrovici, Senn and Jordan, Learning cortical "
            "representations through perturbed and adversarial dreaming, eLife 2022;11:e76384. "
            "Every verdict below is computed from the figures it names."
        ),
        Facts(facts),
        Command(command),
        Table(
            f"Verdicts of the {total} comparisons below",
            ("verdict", "comparisons"),
            [(verdict, str(counts[verdict])) for verdict in verdicts],
        ),
    ]


def _table_1(flags: ReproduceConfig, measured: Measurements) -> list[Block]:
    references = {
        name: published
        for name, published in LINEAR_SEPARABILITY.items()
        if name == flags.dataset or flags.dataset not in LINEAR_SEPARABILITY
    }
    paper, ridge = (_separability_table(flags, measured, probe) for probe in findings.PROBES)
    head, lines = ["condition"], []
    for name in references:
        head.append(f"published, {name} (epoch 50, n = 4)")
    for condition, line in zip([*measured.results, None, None], paper, strict=True):
        values = [published.get(condition) for published in references.values()]
        shown = [
            "" if value is None else f"{100 * value[0]:.2f} ± {100 * value[1]:.2f} %"
            for value in values
        ]
        lines.append((line[0], *shown, line[1]))
    ours = f"ours, {short_name(flags.dataset)} (epoch {flags.epochs})"
    return [
        Heading("Table 1: linear separability"),
        Table(
            "The paper's probe: accuracy on clean test images, mean ± standard error (n seeds). "
            f"Ours averages over seeds of the probe too, of which each run has {flags.probe_seeds}",
            (*head, ours),
            lines,
        ),
        *findings.separability(measured, "probe"),
        Table(
            "A ridge probe of standardised latents, solved exactly, reads more than the paper's "
            "and cannot be compared with it or with published figures",
            ("condition", ours),
            ridge,
        ),
        *findings.separability(measured, "ridge_probe"),
    ]


def _separability_table(
    flags: ReproduceConfig, measured: Measurements, probe: str
) -> list[tuple[str, str]]:
    """A line for each condition, one for the untrained encoder, and one for raw pixels."""
    of = [(TITLES[name], name, "trained") for name in measured.results]
    any_condition = next(iter(measured.results))
    of += [
        ("untrained encoder", any_condition, "untrained"),
        ("raw pixels", any_condition, "pixels"),
    ]
    lines = []
    for title, condition, what in of:
        value = findings.accuracy(measured, condition, probe, what)
        count = "" if what == "pixels" else f" ({value.count})"
        lines.append((title, value.text(100, 2, " %") + count))
    return lines


def _figure_3(measured: Measurements, shown: Config) -> list[Block]:
    sheets = pictures.dream_sheets(shown)
    first = measured.results[shown.condition][0]
    features = first["features"]
    accuracy = features["test_accuracy"]
    name = features["name"] + (
        f", test accuracy {100 * accuracy:.1f} %" if accuracy is not None else ""
    )
    return [
        Heading("Figure 3: dreams and reconstructions, early and late"),
        *(
            Picture(
                f"dreams_epoch_{epoch}",
                sheet,
                f"{TITLES[shown.condition]} after epoch {epoch}: test images, reconstructions, "
                "NREM replays, occluded, recovered from the occluded, and REM dreams",
            )
            for epoch, sheet in sheets.items()
        ),
        _dreams_table(measured, "fid", f"FID, early → late, in features of: {name}", 1.0, ()),
        _dreams_table(
            measured, "kid", "KID x 1000, early → late, in the same features", 1e3, ("distance",)
        ),
        Text(
            "Early is after epoch 1, late at the end; a condition without REM is asked for REM "
            "dreams all the same. These figures can only be compared with others of the same "
            "features, not with the paper's."
        ),
        *findings.dreams(measured),
    ]


def _dreams_table(
    measured: Measurements, metric: str, caption: str, scale: float, rest: tuple[str, ...]
) -> Table:
    lines = []
    for condition in measured.results:
        cells = []
        for kind in _KINDS:
            values = [
                measured.value(condition, metric, time, kind, *rest) for time in ("early", "late")
            ]
            cells.append(" → ".join(value.text(scale, 1) for value in values if value is not None))
        floor = measured.value(condition, metric, "test_images", *rest)
        lines.append((TITLES[condition], *cells, floor.text(scale, 1)))
    head = ("condition", *map(readable, _KINDS), "real test images")
    return Table(caption, head, lines)


def _figure_4(measured: Measurements) -> list[Block]:
    chance = _chance(measured)
    blocks: list[Block] = [Heading("Figure 4: linear separability over training")]
    for probe, title in findings.PROBES.items():
        small = probe != "probe"
        picture = pictures.probe_curves(measured, probe, chance, small=small)
        if picture is not None:
            caption = (
                f"Accuracy of {title} on a tenth of the training images that it is not fitted on"
            )
            blocks.append(Picture(f"{probe}_over_epochs", picture, caption))
        blocks += findings.learning(measured, probe)
    return blocks


def _figure_5(measured: Measurements) -> list[Block]:
    chance, tile = _chance(measured), findings.PAPERS_TILE
    return [
        Heading("Figure 5: linear separability under occlusion"),
        Picture(
            "occlusion",
            pictures.occlusion_curves(measured, [tile], chance),
            "Accuracy of the paper's probe, fitted on clean images, on occluded test images; one "
            "seed of the probe for each run, so that its left end can differ from Table 1",
        ),
        *findings.robustness(measured, [tile]),
        findings.chance(measured),
        Picture(
            "occlusion_other_tiles",
            pictures.occlusion_curves(measured, _OTHER_TILES, chance),
            "The same with tiles of other sizes",
        ),
        *findings.robustness(measured, _OTHER_TILES),
    ]


def _figure_6(measured: Measurements, folders: dict[str, Path]) -> list[Block]:
    maps = []
    for condition, folder in folders.items():
        values = measured.results[condition][0]["metrics"]["pca"]["values"]["trained"]
        share = sum(values["explained_variance"])
        caption = f"{TITLES[condition]}: {100 * share:.1f} % of the variance"
        png = (folder / "figures" / "pca.png").read_bytes()
        maps.append(Picture(f"pca-{condition}", png, caption))
    return [
        Heading("Figure 6: how the latents are organised"),
        Text(
            "First two principal components of the test images' latents. How far classes lie "
            "apart, and occluded images from clean ones, is judged by the distances below."
        ),
        Row(maps),
        Picture(
            "distances",
            pictures.distance_bars(measured),
            "Ratios of mean distances: within against between classes, and clean to occluded "
            "(30 %, tiles of 4 px) against between classes",
        ),
        *findings.distances(measured),
    ]


def _losses(measured: Measurements) -> list[Block]:
    return [
        Heading("Losses over training"),
        Picture("losses", pictures.loss_curves(measured), "Means over each epoch"),
        findings.losses(measured),
    ]


def _chance(measured: Measurements) -> float:
    return 1 / len(next(iter(measured.results.values()))[0]["class_names"])


def _all_pictures(blocks: Sequence[Block]) -> list[Picture]:
    found = []
    for block in blocks:
        if isinstance(block, Row):
            found += block.pictures
        elif isinstance(block, Picture):
            found.append(block)
    return found


def _html_of(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Text(text):
            return f"<p>{html.escape(text)}</p>"
        case Table(caption, head, lines):
            rows = "\n".join(_html_line(line, "td") for line in lines)
            return (
                f'<div class="table"><table>\n<caption>{html.escape(caption)}</caption>\n'
                f"<thead>{_html_line(head, 'th')}</thead>\n"
                f"<tbody>\n{rows}\n</tbody>\n</table></div>"
            )
        case Picture(_, png, caption):
            source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            caption = html.escape(caption)
            return (
                f'<figure><img src="{source}" alt="{caption}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
        case Row(members):
            return '<div class="row">\n' + "\n".join(map(_html_of, members)) + "\n</div>"
        case Facts(items):
            lines = (f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in items.items())
            return "<dl>\n" + "\n".join(lines) + "\n</dl>"
        case Command(text):
            return f"<pre><code>{html.escape(text)}</code></pre>"
        case Finding(claim, verdict, figures):
            look = _LOOKS.get(verdict, "open")
            return (
                f'<p class="finding {look}"><strong>{verdict}.</strong> '
                f"{html.escape(claim)}. Here: {html.escape(figures)}.</p>"
            )


def _html_line(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _markdown_of(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {text}"
        case Text(text):
            return text
        case Table(caption, head, lines):
            rule = ["---", *["---:"] * (len(head) - 1)]
            rows = [f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)]
            return "\n".join([f"{caption}:", "", *rows])
        case Picture(name, _, caption):
            return f"![{caption}](pictures/{name}.png)\n\n{caption}"
        case Row(members):
            return "\n\n".join(map(_markdown_of, members))
        case Facts(items):
            return "\n".join(f"- {name}: {text}" for name, text in items.items())
        case Command(text):
            return f"```\n{text}\n```"
        case Finding(claim, verdict, figures):
            return f"**{verdict}.** {claim}. Here: {figures}."
