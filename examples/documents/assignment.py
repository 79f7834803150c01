"""A university problem sheet: numbered problems with points, sub-questions, and blanks to write on."""

from __future__ import annotations

import math
from pathlib import Path

from pen import Drawn, Formula, arrow, equation, plot, style
from reportlab.lib.colors import black, grey
from reportlab.lib.enums import TA_CENTER, TA_JUSTIFY
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, KeepTogether, PageBreak, Paragraph, SimpleDocTemplate, Spacer, Table

WIDTH = A4[0] - 2 * 72
BODY = style("cmr10", 10.3, 13.4, alignment=TA_JUSTIFY, spaceAfter=5)
PART = style(
    "cmr10", 10.3, 13.4, alignment=TA_JUSTIFY, leftIndent=38, bulletIndent=18, bulletFontName="cmr10", spaceAfter=4
)
HEAD = style("cmb10", 11.6, 15, spaceBefore=13, spaceAfter=4)
TITLE = style("cmb10", 16, 21, alignment=TA_CENTER)
CENTRED = style("cmr10", 10.5, 14, alignment=TA_CENTER)
CODE = style("cmtt10", 9.4, 11.6, leftIndent=38, spaceBefore=2, spaceAfter=6)


def problem(number: int, name: str, points: int) -> Paragraph:
    return Paragraph(f"Problem {number}. {name} <font name='cmr10' size='10'>({points} points)</font>", HEAD)


def parts(*texts: str) -> list[Flowable]:
    return [Paragraph(text, PART, bulletText=f"({letter})") for letter, text in zip("abcdefg", texts, strict=False)]


def formula(tex: str) -> Drawn:
    return equation(tex, WIDTH, size=10.6, family="cm")


def blank(lines: int) -> Drawn:
    """Ruled space for an answer."""

    def paint(canvas: Canvas) -> None:
        canvas.setLineWidth(0.4)
        canvas.setStrokeColor(grey)
        for i in range(lines):
            canvas.line(38, 4 + 20 * i, WIDTH, 4 + 20 * i)

    return Drawn(WIDTH, 20 * lines + 4, paint)


def name_line(canvas: Canvas) -> None:
    canvas.setFont("cmr10", 10.5)
    for x, label, end in ((0, "Name:", 210), (222, "Student no.:", 350), (362, "Group:", WIDTH)):
        canvas.drawString(x, 8, label)
        canvas.line(x + canvas.stringWidth(label) + 4, 6, end, 6)


def pendulum(canvas: Canvas) -> None:
    canvas.setLineWidth(0.8)
    canvas.line(60, 112, 150, 112)
    for x in range(62, 150, 8):
        canvas.line(x, 112, x + 6, 118)
    canvas.setDash(3, 2)
    canvas.line(105, 112, 105, 14)
    canvas.setDash()
    canvas.line(105, 112, 150, 32)
    canvas.circle(150, 32, 8, fill=1)
    arrow(canvas, 150, 24, 150, 0)
    arrow(canvas, 146, 40, 128, 71)
    canvas.arc(80, 87, 130, 137, -90, 29)
    for x, y, tex in ((112, 76, r"\theta"), (138, 74, r"\ell"), (164, 30, "m"), (155, 6, "mg"), (118, 56, "T")):
        Formula(tex, 10.5, family="cm").draw(canvas, x, y)
    curve = [(t / 10, math.exp(-t / 60) * math.cos(t / 4)) for t in range(121)]
    plot(
        canvas,
        (250, 26, 175, 84),
        [curve],
        x_range=(0, 12),
        y_range=(-1, 1),
        x_label="time (s)",
        font="cmr10",
        size=7.5,
        ticks=(6, 4),
        grid=0.25,
        colors=("#000000",),
    )


def matrix(canvas: Canvas) -> None:
    """A 3 x 3 matrix in large brackets, and a vector."""

    def brackets(left: float, right: float) -> None:
        for x, step in ((left, 4), (right, -4)):
            canvas.lines([(x, 2, x, 52), (x, 2, x + step, 2), (x, 52, x + step, 52)])

    canvas.setLineWidth(0.8)
    Formula("A =", 10.6, family="cm").draw(canvas, 130, 24)
    brackets(160, 236)
    for row, cells in enumerate((("2", "-1", "0"), ("-1", "2", "-1"), ("0", "-1", "2"))):
        for col, cell in enumerate(cells):
            Formula(cell, 10.6, family="cm").draw(canvas, 168 + 24 * col, 42 - 17 * row)
    Formula("b =", 10.6, family="cm").draw(canvas, 270, 24)
    brackets(296, 322)
    for row, cell in enumerate(("1", "0", r"\beta")):
        Formula(cell, 10.6, family="cm").draw(canvas, 306, 42 - 17 * row)


def measurements() -> Table:
    rows = [
        ["run", "1", "2", "3", "4", "5", "6"],
        ["length (m)", "0.25", "0.50", "0.75", "1.00", "1.25", "1.50"],
        ["period (s)", "1.01", "1.43", "1.73", "2.02", "2.25", "2.44"],
    ]
    return Table(
        rows,
        style=[
            ("FONT", (0, 0), (-1, -1), "cmr10", 9.5),
            ("GRID", (0, 0), (-1, -1), 0.5, black),
            ("ALIGN", (1, 0), (-1, -1), "CENTER"),
        ],
    )


def grading() -> Table:
    rows = [
        ["Problem", "1", "2", "3", "4", "5", "Total"],
        ["Points", "12", "10", "14", "8", "6", "50"],
        ["Score"] + [""] * 6,
    ]
    return Table(
        rows,
        colWidths=[58] + [40] * 6,
        style=[
            ("FONT", (0, 0), (-1, -1), "cmr10", 10),
            ("GRID", (0, 0), (-1, -1), 0.6, black),
            ("ALIGN", (1, 0), (-1, -1), "CENTER"),
        ],
    )


def story() -> list[Flowable]:
    return [
        Paragraph("Mechanics and Computation II", TITLE),
        Paragraph(
            "Homework 6: Oscillations, Matrices and a Little Chance", style("cmb10", 12, 17, alignment=TA_CENTER)
        ),
        Paragraph("Lecturer: Dr. E. Marwick. Due: Thursday of week nine, 12:00, in the box by room 214", CENTRED),
        Spacer(1, 12),
        Drawn(WIDTH, 22, name_line),
        Spacer(1, 8),
        Paragraph(
            "<b>Instructions.</b> Show your work; a bare number earns no points. You may discuss the problems "
            "in groups of three, "
            "but each of you hands in a sheet in your own words. Problems marked with a star are harder and "
            "count double "
            "towards the oral examination. Staple your pages.",
            BODY,
        ),
        Spacer(1, 4),
        grading(),
        problem(1, "The damped pendulum", 12),
        Paragraph(
            "A bob of mass <i>m</i> hangs from a light rod of length one metre and is released at rest. Air "
            "slows it with a force "
            "proportional to its speed, so that for small angles",
            BODY,
        ),
        formula(
            r"\ddot{\theta} + 2 \gamma \dot{\theta} + \omega_0^2 \theta = 0, \qquad \omega_0 = "
            r"\sqrt{\dfrac{g}{\ell}}."
        ),
        Drawn(WIDTH, 126, pendulum),
        *parts(
            "Show that the energy never grows. When does it stay the same? [3]",
            "Find the motion for weak damping, and read the damping from the plot on the right. [4]",
            "The class measured the periods below. Estimate <i>g</i> by least squares, and its error. [5]",
        ),
        measurements(),
        PageBreak(),
        problem(2, "A chain of three", 10),
        Paragraph(
            "Three equal masses are joined by equal springs between two walls. In suitable units their "
            "equations of motion lead "
            "to the matrix and the vector",
            BODY,
        ),
        Drawn(WIDTH, 58, matrix),
        *parts(
            "Compute the eigenvalues of <i>A</i> and an orthonormal set of eigenvectors. [4]",
            "For which value of the last entry of <i>b</i> does the middle mass stay at rest? [3]",
            "Sketch the three modes and order them by frequency. [3]",
        ),
        blank(4),
        problem(3, "Integration by three rules", 14),
        Paragraph(
            "Let the integral below be approximated with <i>n</i> equal steps by the rectangle, the trapezoid "
            "and Simpson's rule.",
            BODY,
        ),
        formula(
            r"I = \int_0^{\pi} \dfrac{\sin x}{1 + x^2}\, dx, \qquad E_n = \left| I - I_n \right| \leq "
            r"\dfrac{C}{n^p}"
        ),
        *parts("Write a function with the signature below. It must not call any library but the mathematical one. [5]"),
        Paragraph(
            "def integrate(f, a, b, n, rule='simpson'):<br/>&nbsp;&nbsp;&nbsp;&nbsp;'''Return the integral of f "
            "from a to b.'''<br/>"
            "&nbsp;&nbsp;&nbsp;&nbsp;h = (b - a) / n<br/>&nbsp;&nbsp;&nbsp;&nbsp;...",
            CODE,
        ),
        Paragraph(
            "Plot the error against <i>n</i> on logarithmic axes and estimate <i>p</i> for each rule. [4]",
            PART,
            bulletText="(b)",
        ),
        Paragraph(
            "Replace the integrand by the square root of <i>x</i>. Which slope changes, and why? [5]",
            PART,
            bulletText="(c)",
        ),
        KeepTogether(
            [
                problem(4, "True or false", 8),
                Paragraph("Circle the right answer and justify it in one sentence. [2 each]", BODY),
                *parts(
                    "A symmetric matrix with positive entries has positive eigenvalues. T&nbsp;/&nbsp;F",
                    "Two commuting matrices share an eigenvector over the complex numbers. T&nbsp;/&nbsp;F",
                    "The median of a sample is within one standard deviation of its mean. T&nbsp;/&nbsp;F",
                    "Doubling the number of steps halves the error of the trapezoid rule. T&nbsp;/&nbsp;F",
                ),
            ]
        ),
        PageBreak(),
        problem(5, "Waiting for the tram*", 6),
        Paragraph(
            "Trams leave every ten minutes in the mean, at independent and exponentially distributed intervals. "
            "You arrive at a time "
            "that has nothing to do with the timetable.",
            BODY,
        ),
        *parts(
            "What is the expected wait? Explain to a friend why it is not five minutes. [2]",
            "Let <i>N</i> be the number of trams in an hour. Derive [2]",
        ),
        formula(r"P(N = k) = \dfrac{\lambda^k}{k!}\, e^{-\lambda}, \qquad \mathrm{E}(N) = \mathrm{Var}(N) = \lambda."),
        Paragraph(
            "Simulate ten thousand hours and compare the histogram with your formula. Hand in the plot. [2]",
            PART,
            bulletText="(c)",
        ),
        Spacer(1, 6),
        Paragraph("<b>Space for your answers</b>", BODY),
        blank(14),
        Spacer(1, 14),
        Paragraph(
            "<b>Feedback (optional).</b> How many hours did this sheet take you? Which problem taught you most? "
            "Tell us overleaf.",
            BODY,
        ),
    ]


def footer(canvas: Canvas, document: SimpleDocTemplate) -> None:
    canvas.setFont("cmr10", 9)
    canvas.drawCentredString(A4[0] / 2, 40, f"{document.page} / 3")
    if document.page > 1:
        canvas.drawString(72, A4[1] - 50, "Mechanics and Computation II")
        canvas.drawRightString(A4[0] - 72, A4[1] - 50, "Homework 6")
        canvas.setLineWidth(0.4)
        canvas.line(72, A4[1] - 54, A4[0] - 72, A4[1] - 54)


def draw(path: Path) -> None:
    """Write the assignment."""
    document = SimpleDocTemplate(
        str(path),
        pagesize=A4,
        leftMargin=66,
        rightMargin=66,
        topMargin=62,
        bottomMargin=58,
        invariant=1,
        pageCompression=1,
        title="Homework 6",
    )
    document.build(story(), onFirstPage=footer, onLaterPages=footer)
