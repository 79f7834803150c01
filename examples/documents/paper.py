"""A scientific paper: two columns, abstract, figures, equations, a table, references."""

from __future__ import annotations

import math
from pathlib import Path

from pen import Drawn, Prose, arrow, equation, plot, style
from reportlab.lib.colors import HexColor, black
from reportlab.lib.enums import TA_CENTER, TA_JUSTIFY
from reportlab.lib.pagesizes import letter
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    Flowable,
    Frame,
    FrameBreak,
    NextPageTemplate,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
)

WIDTH, HEIGHT = letter
COLUMN, GAP, SIDE, FOOT = 241.0, 18.0, 56.0, 62.0
WIDE = 2 * COLUMN + GAP

BODY = style("STIXGeneral", 9.4, 11.2, alignment=TA_JUSTIFY, firstLineIndent=10)
PLAIN = style("STIXGeneral", 9.4, 11.2, alignment=TA_JUSTIFY)
HEAD = style("STIXGeneralBol", 11.4, 14, spaceBefore=9, spaceAfter=4)
SUBHEAD = style("STIXGeneralBol", 9.8, 12, spaceBefore=6, spaceAfter=3)
CAPTION = style("STIXGeneral", 8.2, 9.6, alignment=TA_JUSTIFY, spaceBefore=3, spaceAfter=8)
REFERENCE = style("STIXGeneral", 8, 9.2, alignment=TA_JUSTIFY, leftIndent=14, firstLineIndent=-14, spaceAfter=1.8)
TITLE = style("STIXGeneralBol", 17, 20, alignment=TA_CENTER, spaceAfter=10)
CENTRED = style("STIXGeneral", 10, 12.4, alignment=TA_CENTER)

PROSE = Prose(
    7,
    subjects=("the pressure record", "a single float", "the corrected series", "our estimate", "each harbour gauge",
              "the residual current", "the low-cost sensor", "the harmonic model", "the second mooring",
              "the board that observers read", "a robust mean", "the record of the first winter"),
    verbs=("follows", "reproduces", "underestimates", "explains most of", "is consistent with", "lags behind",
    "resolves",
           "accounts for", "is well described by", "overstates", "cannot be told apart from", "leads"),
    objects=("the semidiurnal cycle", "the surge of the previous night", "the reference gauge", "the annual mean",
             "the shallow-water constituents", "the response of the basin", "what the pilots reported",
             "the seiche of the inner basin", "both spring tides", "the wind set-up", "the level at slack water"),
)  # fmt: skip

ABSTRACT = (
    "Small harbours rarely have a tide gauge, yet their quays flood first. We ask how well sea level can be measured "
    "with "
    "parts that cost less than a fishing net: a pressure cell, a float and a clock. Over fourteen months at three "
    "harbours "
    "the instruments lost 2.1 % of their readings. After a correction for drift that needs no visit, hourly levels "
    "agree "
    "with a reference gauge to 1.9 cm, and the four largest constituents to 4 mm and two degrees of phase. We publish "
    "the "
    "drawings, the records and the code, and describe what failed."
)
INTRO = (
    "The height of the sea at a quay is among the oldest of measurements, and among the most unevenly distributed. "
    "Large "
    "ports keep records that span centuries; the small ones next door keep a painted board. When a storm surge "
    "arrives, a "
    "forecast made for the large port is moved along the coast by a table of offsets [1, 4], which is least reliable "
    "in the "
    "shallow bays where most small harbours lie."
)
REFERENCES = (
    "A. Holm and B. Reyes. Offsets for secondary ports, revisited. Notes on Coastal Practice, 12(3):41-58, 2011.",
    "C. Imrie. The drift of cheap pressure cells. Instruments at Sea, 4:201-219, 2016.",
    "D. Vasko, E. Lindqvist and F. Moreau. Least squares for short records. Tidal Letters, 8(1):7-15, 2009.",
    "G. Aldous. What the harbour master knows. In Meeting on Small Ports, pages 88-97, 2014.",
    "H. Petrov and I. Sand. Seiches in closed basins. Journal of Long Waves, 31:330-351, 2002.",
    "J. Kiplagat. Batteries below ten degrees. Field Engineering Quarterly, 19(2):66-71, 2018.",
    "K. Oduya, L. Brandt and M. Sol. A float that survives the winter. Instruments at Sea, 7:14-29, 2019.",
    "N. Tamm. Phase errors and how to find them. Tidal Letters, 11(4):120-133, 2012.",
    "O. Quist. Reading the board: observers and their habits. Notes on Coastal Practice, 15(1):3-22, 2014.",
    "P. Rahmani and Q. West. Air pressure at the quay. Field Engineering Quarterly, 22(3):90-104, 2021.",
    "R. Silvestri. Robust means for skewed noise. Letters on Estimation, 3(2):55-61, 2007.",
    "S. Thorne, T. Ueda and U. Varga. Two winters of open data. Journal of Long Waves, 44:12-40, 2020.",
    "V. Wynn. On the cost of a visit. In Meeting on Small Ports, pages 140-148, 2018.",
    "W. Xu and Y. Zeller. Clocks that drift together. Field Engineering Quarterly, 25(1):1-13, 2022.",
)


def tide(hour: float) -> float:
    """A tide of two constituents, in metres."""
    return 1.1 * math.cos(math.tau * hour / 12.42) + 0.35 * math.cos(math.tau * hour / 12.0 + 0.6)


def records(canvas: Canvas) -> None:
    hours = [i * 0.7 for i in range(240)]
    box = (28, 26, COLUMN - 36, 96)
    measured = [(h / 24, tide(h) + 0.12 * math.sin(2.3 * h) * math.sin(0.31 * h)) for h in hours]
    curves = ([(h / 24, tide(h)) for h in hours], measured)
    plot(
        canvas,
        box,
        curves,
        x_range=(0, 7),
        y_range=(-2, 2),
        x_label="day",
        y_label="level (m)",
        font="STIXGeneral",
        size=7,
        ticks=(7, 4),
        grid=0,
    )


def instrument(canvas: Canvas) -> None:
    canvas.setFont("STIXGeneral", 7.5)
    labels = ("pressure", "float", "clock", "merge", "drift", "level")
    places = ((0, 62), (0, 34), (0, 6), (82, 34), (140, 34), (198, 34))
    for label, (x, y) in zip(labels, places, strict=True):
        canvas.setFillColor(HexColor("#e8eef7" if x else "#fbf1dc"))
        canvas.roundRect(x + 2, y, 40, 20, 3, fill=1)
        canvas.setFillColor(black)
        canvas.drawCentredString(x + 22, y + 7, label)
    for y in (72, 44, 16):
        arrow(canvas, 42, y, 83, 44 + (y - 44) / 5)
    arrow(canvas, 124, 44, 141, 44)
    arrow(canvas, 182, 44, 199, 44)
    canvas.setDash(2, 2)
    canvas.lines([(220, 34, 220, 14), (220, 14, 162, 14)])
    arrow(canvas, 162, 14, 162, 33)


def harbours(canvas: Canvas) -> None:
    for i, name in enumerate(("(a) Eastquay", "(b) Millhaven", "(c) Saint Orrin")):
        left = 30 + i * 168
        dots = [(t := tide(1.7 * k + i), t + PROSE.number(-0.22, 0.22) * (1 + 0.4 * i)) for k in range(70)]
        plot(
            canvas,
            (left, 30, 126, 104),
            [dots],
            x_range=(-2, 2),
            y_range=(-2, 2),
            x_label="reference (m)",
            y_label="ours (m)" if i == 0 else "",
            font="STIXGeneral",
            size=7.5,
            ticks=(4, 4),
            grid=0.2,
            dots=True,
            colors=(("#1f4e9c", "#2e7d32", "#c0392b")[i],),
        )
        canvas.setDash(3, 2)
        canvas.line(left, 30, left + 126, 134)
        canvas.setDash()
        canvas.setFont("STIXGeneralBol", 8)
        canvas.drawString(left + 4, 138, name)


def bars(canvas: Canvas) -> None:
    canvas.setFont("STIXGeneral", 7.5)
    for i, (name, value) in enumerate(
        (("none", 6.8), ("linear", 4.1), ("yearly", 3.2), ("ours", 1.9), ("visits", 1.7))
    ):
        left = 30 + i * 40
        canvas.setFillColor(HexColor("#1f4e9c" if name == "ours" else "#b8c4d6"))
        canvas.rect(left, 16, 26, value * 12, fill=1)
        canvas.setFillColor(black)
        canvas.drawCentredString(left + 13, 6, name)
        canvas.drawCentredString(left + 13, 19 + value * 12, f"{value} cm")
    canvas.line(24, 16, 230, 16)


def ageing(canvas: Canvas) -> None:
    months = range(15)
    curves = [
        [(m, base + slope * m + PROSE.number(-0.15, 0.15)) for m in months]
        for base, slope in ((2.1, 0.42), (1.9, 0.2), (1.7, 0.02))
    ]
    plot(
        canvas,
        (28, 26, COLUMN - 36, 88),
        curves,
        x_range=(0, 14),
        y_range=(0, 8),
        x_label="months since deployment",
        y_label="error (cm)",
        font="STIXGeneral",
        size=7,
        ticks=(7, 4),
    )


def constituents() -> Table:
    rows = [["", "period (h)", "ours (m)", "gauge (m)", "phase (deg)"]]
    for name, period, level in (
        ("M2", 12.42, 1.104),
        ("S2", 12.00, 0.352),
        ("N2", 12.66, 0.211),
        ("K1", 23.93, 0.094),
        ("O1", 25.82, 0.071),
        ("M4", 6.21, 0.038),
    ):
        gauge, phase = level + PROSE.number(-0.004, 0.004), PROSE.number(-2, 2)
        rows.append([name, f"{period:.2f}", f"{level:.3f}", f"{gauge:.3f}", f"{phase:+.1f}"])
    rules = [
        ("LINEABOVE", (0, 0), (-1, 0), 0.9, black),
        ("LINEBELOW", (0, 0), (-1, 0), 0.5, black),
        ("LINEBELOW", (0, -1), (-1, -1), 0.9, black),
        ("FONT", (0, 0), (-1, -1), "STIXGeneral", 8.4),
        ("ALIGN", (1, 0), (-1, -1), "RIGHT"),
        ("TOPPADDING", (0, 0), (-1, -1), 1),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
    ]
    return Table(rows, colWidths=[30, 52, 48, 52, 55], style=rules)


def raised(mark: str) -> str:
    return f"<super size=7>{mark}</super>"


def front() -> list[Flowable]:
    space = "&nbsp;" * 4
    names = f"Mara Lindholm{raised('1')}{space}Tobias Okafor{raised('1,2')}{space}Ines Varela{raised('2')}"
    places = (
        f"{raised('1')}Institute of Coastal Measurement, Eastquay{space}{raised('2')}School of Engineering, Millhaven"
    )
    return [
        Paragraph("Fourteen Months of Tides from Three Small Harbours,<br/>Measured with a Float and a Clock", TITLE),
        Paragraph(names, CENTRED),
        Paragraph(f"<i>{places}</i>", style("STIXGeneral", 8.6, 11, alignment=TA_CENTER)),
        FrameBreak(),
    ]


def story() -> list[Flowable]:
    def text(sentences: int) -> Paragraph:
        return Paragraph(PROSE.paragraph(sentences), BODY)

    def formula(tex: str, number: str) -> Drawn:
        return equation(tex, COLUMN, size=9.6, number=number)

    italic = style("STIXGeneralItalic", 9, 10.8, alignment=TA_JUSTIFY, leftIndent=8, rightIndent=8)
    parts: list[Flowable] = [
        Paragraph("Abstract", style("STIXGeneralBol", 10.5, 14, alignment=TA_CENTER)),
        Paragraph(ABSTRACT, italic),
        Paragraph("1&nbsp;&nbsp; Introduction", HEAD),
        Paragraph(INTRO, PLAIN),
        text(6),
        text(7),
        Paragraph("2&nbsp;&nbsp; Related Work", HEAD),
        Paragraph(PROSE.paragraph(5), PLAIN),
        text(6),
        Spacer(1, 6),
        Drawn(COLUMN, 128, records),
        Paragraph(
            "<b>Figure 1:</b> One week at Eastquay. Blue: harmonic model; red: measured. " + PROSE.sentence(), CAPTION
        ),
        Paragraph("3&nbsp;&nbsp; The Instrument", HEAD),
        Paragraph(PROSE.paragraph(5), PLAIN),
        Paragraph("The level is written as a sum of constituents and a slow drift,", BODY),
        formula(r"h(t) = h_0 + \sum_{k=1}^{K} A_k \cos(\omega_k t + \varphi_k) + d(t),", "1"),
        Paragraph("where the drift is estimated from the float, with weights that fall with wind speed:", PLAIN),
        formula(
            r"\hat{d}(t) = \dfrac{\sum_i w_i \left( p_i - \rho g h_i \right)}{\sum_i w_i}, \qquad w_i = e^{-u_i^2 "
            r"/ 2\sigma^2}.",
            "2",
        ),
        Paragraph(PROSE.paragraph(4), PLAIN),
        Drawn(COLUMN, 88, instrument),
        Paragraph("<b>Figure 2:</b> From three readings to a level. The dashed path is used once a day.", CAPTION),
        Paragraph("3.1&nbsp; Estimation", SUBHEAD),
        Paragraph(PROSE.paragraph(4), PLAIN),
        formula(
            r"\min_{A, \varphi}\ \int_0^T \left| h(t) - \hat{h}(t) \right| \mathrm{d}t + \lambda \sum_{k} "
            r"\sqrt{A_k^2 + \epsilon}",
            "3",
        ),
        text(5),
        text(6),
        Paragraph("3.2&nbsp; Clocks", SUBHEAD),
        Paragraph(PROSE.paragraph(6), PLAIN),
        text(5),
        NextPageTemplate("figure"),
        Paragraph("4&nbsp;&nbsp; Results", HEAD),
        Paragraph(PROSE.paragraph(6), PLAIN),
        text(7),
        text(6),
        Paragraph("<b>Table 1:</b> Amplitudes of the six largest constituents, against the reference gauge.", CAPTION),
        constituents(),
        Spacer(1, 8),
        text(6),
        text(6),
        text(6),
        NextPageTemplate("later"),
        Paragraph("4.1&nbsp; What the Correction Brings", SUBHEAD),
        Paragraph(PROSE.paragraph(5), PLAIN),
        Spacer(1, 6),
        Drawn(COLUMN, 108, bars),
        Paragraph("<b>Figure 4:</b> Error of hourly levels under five corrections (lower is better).", CAPTION),
        text(6),
        Paragraph("4.2&nbsp; Ageing", SUBHEAD),
        Paragraph(PROSE.paragraph(7), PLAIN),
        text(6),
        Spacer(1, 6),
        Drawn(COLUMN, 118, ageing),
        Paragraph(
            "<b>Figure 5:</b> Error against age without correction (blue), with a linear one (red), with ours (green).",
            CAPTION,
        ),
        text(6),
        Paragraph("5&nbsp;&nbsp; Limits", HEAD),
        Paragraph(PROSE.paragraph(6), PLAIN),
        text(6),
        text(5),
        Paragraph("6&nbsp;&nbsp; Conclusion", HEAD),
        Paragraph(PROSE.paragraph(5), PLAIN),
        Paragraph("Acknowledgements", SUBHEAD),
        Paragraph("We thank the harbour masters of all three ports, who read the board twice a day.", PLAIN),
        Paragraph("References", HEAD),
    ]
    return parts + [Paragraph(f"[{i}] {entry}", REFERENCE) for i, entry in enumerate(REFERENCES, 1)]


def page_number(canvas: Canvas, document: BaseDocTemplate) -> None:
    canvas.setFont("STIXGeneral", 9)
    canvas.drawCentredString(WIDTH / 2, 36, str(document.page))


def figure_page(canvas: Canvas, document: BaseDocTemplate) -> None:
    """A page whose top is a figure as wide as both columns."""
    page_number(canvas, document)
    canvas.saveState()
    canvas.translate(SIDE, HEIGHT - 60 - 146)
    harbours(canvas)
    caption = Paragraph(
        "<b>Figure 3:</b> Hourly levels against the reference gauge at the three harbours, 4,320 "
        "hours each. "
        "The dashed line is equality. Scatter grows with the length of the entrance channel.",
        CAPTION,
    )
    _, height = caption.wrap(WIDE, 100)
    caption.drawOn(canvas, 0, -height - 2)
    canvas.restoreState()


def draw(path: Path) -> None:
    """Write the paper."""

    def columns(top: float) -> list[Frame]:
        return [Frame(SIDE + i * (COLUMN + GAP), FOOT, COLUMN, HEIGHT - top - FOOT, 0, 0, 0, 0) for i in (0, 1)]

    heading = Frame(SIDE, HEIGHT - 158, WIDE, 98, 0, 0, 0, 0)
    templates = [
        PageTemplate("first", [heading, *columns(168)], onPage=page_number),
        PageTemplate("later", columns(60), onPage=page_number),
        PageTemplate("figure", columns(60 + 190), onPage=figure_page),
    ]
    title = "Fourteen Months of Tides from Three Small Harbours"
    document = BaseDocTemplate(
        str(path), pagesize=letter, pageTemplates=templates, invariant=1, pageCompression=1, title=title
    )
    document.build([*front(), NextPageTemplate("later"), *story()])
