"""What the specimens share: embedded fonts, TeX formulas, plots, and made-up prose."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from reportlab import rl_config
from reportlab.lib.colors import Color, HexColor, black
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable

rl_config.useA85 = 0  # binary streams, a fifth smaller than ASCII ones
rl_config.ttfAsciiReadable = 0  # embed only the glyphs that are used

Curve = Sequence[tuple[float, float]]
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # Computer Modern and STIX come with Matplotlib


def load_fonts() -> None:
    """Register `STIXGeneral` (a Times), `cmr10` (Computer Modern) and `DejaVuSans` with reportlab."""
    families = {
        "STIXGeneral": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
        "cmr10": ("cmr10", "cmb10", "cmmi10", "cmb10"),
        "DejaVuSans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    }
    loose = ("cmss10", "cmtt10", "cmsy10", "cmex10", "STIXSizOneSymReg", "STIXSizTwoSymReg", "STIXSizThreeSymReg")
    for name in {*sum(families.values(), ()), *loose}:
        pdfmetrics.registerFont(TTFont(name, str(FONTS / f"{name}.ttf")))
    for family, faces in families.items():
        normal, bold, italic, both = faces
        pdfmetrics.registerFontFamily(family, normal=normal, bold=bold, italic=italic, boldItalic=both)


def new_canvas(path: Path, size: tuple[float, float], title: str) -> Canvas:
    """An empty PDF whose bytes depend on what is drawn and on nothing else (no dates, no random identifiers)."""
    canvas = Canvas(str(path), pagesize=size, invariant=1, pageCompression=1)
    canvas.setTitle(title)
    return canvas


def style(font: str, size: float, leading: float = 0.0, **more: object) -> ParagraphStyle:
    """A paragraph style; the leading is 1.2 times the size where none is given."""
    return ParagraphStyle(font, fontName=font, fontSize=size, leading=leading or 1.2 * size, **more)


class Formula:
    """A TeX formula set by Matplotlib's mathtext, drawn with embedded glyphs; sizes in points."""

    def __init__(self, tex: str, size: float, *, family: str = "stix") -> None:
        self.scale = 16.0  # mathtext rounds to whole pixels: set large, draw small
        properties = FontProperties(math_fontfamily=family, size=size * self.scale)
        parsed = MathTextParser("path").parse(f"${tex}$", 72, properties)
        self.glyphs, self.rules = parsed.glyphs, parsed.rects
        self.width = float(parsed.width) / self.scale
        self.depth = float(parsed.depth) / self.scale
        self.height = float(parsed.height) / self.scale - self.depth

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        """Draw with the baseline's left end at (x, y)."""
        for glyph in self.glyphs:  # (font, size, character, [glyph index,] x, y), the index in newer Matplotlibs only
            canvas.setFont(Path(str(glyph[0].fname)).stem, glyph[1] / self.scale)
            canvas.drawString(x + glyph[-2] / self.scale, y + glyph[-1] / self.scale, chr(glyph[2]))
        for left, bottom, width, height in self.rules:
            scaled = (width / self.scale, max(height / self.scale, 0.4))
            canvas.rect(x + left / self.scale, y + bottom / self.scale, *scaled, stroke=0, fill=1)


class Drawn(Flowable):  # type: ignore[misc]
    """A picture in a column of text: `draw(canvas)` paints into a box of the given size, origin at bottom left."""

    def __init__(self, width: float, height: float, paint: Callable[[Canvas], None], align: str = "CENTER") -> None:
        super().__init__()
        self.width, self.height, self.paint, self.hAlign = width, height, paint, align

    def draw(self) -> None:
        self.paint(self.canv)


def equation(
    tex: str, width: float, *, size: float = 10, number: str = "", family: str = "stix", pad: float = 4
) -> Drawn:
    """A displayed formula, centred in a column, with its number at the right margin."""
    formula = Formula(tex, size, family=family)
    font = "cmr10" if family == "cm" else "STIXGeneral"

    def paint(canvas: Canvas) -> None:
        formula.draw(canvas, max(0.0, (width - formula.width) / 2), pad + formula.depth)
        if number:
            canvas.setFont(font, size)
            canvas.drawRightString(width, pad + formula.depth, f"({number})")

    return Drawn(width, formula.height + formula.depth + 2 * pad, paint)


def plot(
    canvas: Canvas,
    box: tuple[float, float, float, float],
    curves: Sequence[Curve],
    *,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    x_label: str = "",
    y_label: str = "",
    font: str = "Helvetica",
    size: float = 6,
    ticks: tuple[int, int] = (5, 4),
    grid: float = 0.3,
    colors: Sequence[str] = ("#1f4e9c", "#c0392b", "#2e7d32", "#8e6c00"),
    dots: bool = False,
) -> None:
    """Axes with ticks and labels in the box (left, bottom, width, height); curves are points in data units."""
    left, bottom, width, height = box

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_range[0]) / (x_range[1] - x_range[0]), (y - y_range[0]) / (y_range[1] - y_range[0])
        return left + across * width, bottom + min(max(up, 0.0), 1.0) * height

    canvas.saveState()
    canvas.setFont(font, size)
    canvas.setFillColor(black)
    for i in range(ticks[0] + 1):
        value = x_range[0] + (x_range[1] - x_range[0]) * i / ticks[0]
        x, _ = place(value, y_range[0])
        thin_line(canvas, x, bottom, x, bottom + height, grid)
        canvas.drawCentredString(x, bottom - size - 2, f"{value:g}")
    for i in range(ticks[1] + 1):
        value = y_range[0] + (y_range[1] - y_range[0]) * i / ticks[1]
        _, y = place(x_range[0], value)
        thin_line(canvas, left, y, left + width, y, grid)
        canvas.drawRightString(left - 3, y - size / 3, f"{value:.3g}")
    canvas.setLineWidth(0.7)
    canvas.rect(*box)
    canvas.drawCentredString(left + width / 2, bottom - 2.4 * size - 2, x_label)
    canvas.saveState()
    canvas.translate(left - 4 * size, bottom + height / 2)
    canvas.rotate(90)
    canvas.drawCentredString(0, 0, y_label)
    canvas.restoreState()
    canvas.setLineWidth(1)
    for curve, color in zip(curves, [*colors] * len(curves), strict=False):
        canvas.setStrokeColor(HexColor(color))
        canvas.setFillColor(HexColor(color))
        points = [place(x, y) for x, y in curve]
        if dots:
            for x, y in points:
                canvas.rect(round(x - 1.1, 1), round(y - 1.1, 1), 2.2, 2.2, stroke=0, fill=1)
            continue
        path = canvas.beginPath()
        path.moveTo(*points[0])
        for x, y in points[1:]:
            path.lineTo(round(x, 1), round(y, 1))
        canvas.drawPath(path)
    canvas.restoreState()


def thin_line(canvas: Canvas, x0: float, y0: float, x1: float, y1: float, width: float) -> None:
    """A grey grid line; none at width 0."""
    if width:
        canvas.saveState()
        canvas.setLineWidth(width)
        canvas.setStrokeColor(Color(0.6, 0.6, 0.6))
        canvas.line(x0, y0, x1, y1)
        canvas.restoreState()


def arrow(canvas: Canvas, x0: float, y0: float, x1: float, y1: float, head: float = 4) -> None:
    """A straight arrow with a filled head, in the current stroke colour."""
    canvas.line(x0, y0, x1, y1)
    length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 or 1.0
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    path = canvas.beginPath()
    path.moveTo(x1, y1)
    path.lineTo(x1 - head * ux - head * uy / 2.5, y1 - head * uy + head * ux / 2.5)
    path.lineTo(x1 - head * ux + head * uy / 2.5, y1 - head * uy - head * ux / 2.5)
    path.close()
    canvas.drawPath(path, fill=1, stroke=0)


class Prose:
    """Endless plausible sentences from short lists of phrases; the same seed gives the same text."""

    def __init__(self, seed: int, *, subjects: Sequence[str], verbs: Sequence[str], objects: Sequence[str]) -> None:
        self._random = random.Random(seed)
        self._parts = (subjects, verbs, objects)
        self._tails = (
            "",
            "",
            "",
            "in all three seasons",
            "once the drift is removed",
            "as expected",
            "within a few minutes",
            "although the margin is small",
            "which agrees with earlier work",
            "even at the smallest scale",
            "without further tuning",
            "over the whole range",
            "except on the two windiest days",
            "at little cost",
        )
        self._openers = ("", "", "", "", "In practice, ", "By contrast, ", "Moreover, ", "Here ", "As a result, ")

    def pick(self, options: Sequence[str]) -> str:
        """One of the options; drawn from `random()`, whose sequence Python keeps between versions."""
        return options[int(self._random.random() * len(options))]

    def number(self, low: float, high: float) -> float:
        """A uniform number between low and high."""
        return low + (high - low) * self._random.random()

    def sentence(self) -> str:
        words = " ".join(self.pick(part) for part in self._parts)
        tail = self.pick(self._tails)
        text = self.pick(self._openers) + words + (f" {tail}" if tail else "") + "."
        return text[0].upper() + text[1:]

    def paragraph(self, sentences: int) -> str:
        return " ".join(self.sentence() for _ in range(sentences))
