"""A government form: numbered boxes, check boxes, amounts in columns, fine print, signatures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from pen import new_canvas, style
from reportlab.lib.colors import HexColor, black, white
from reportlab.lib.enums import TA_JUSTIFY
from reportlab.lib.pagesizes import letter
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Paragraph

WIDTH, HEIGHT = letter
LEFT, RIGHT = 38.0, letter[0] - 38
SHADE = HexColor("#d9d9d9")
FINE = style("Helvetica", 6.6, 7.9, alignment=TA_JUSTIFY)
SMALL = style("Helvetica", 7.8, 9.4)
SANS, BOLD = "Helvetica", "Helvetica-Bold"
LINE = 18.0  # height of a line of amounts


def text(canvas: Canvas, x: float, y: float, words: str, size: float = 7.6, font: str = SANS) -> None:
    canvas.setFont(font, size)
    canvas.drawString(x, y, words)


def check(canvas: Canvas, x: float, y: float, label: str, size: float = 7.6) -> float:
    """A check box with its label; the x where the next one may start."""
    canvas.setLineWidth(0.7)
    canvas.rect(x, y - 1, 7.5, 7.5)
    text(canvas, x + 11, y, label, size)
    return x + 11 + float(canvas.stringWidth(label, SANS, size)) + 14


def cells(
    canvas: Canvas,
    y: float,
    height: float,
    fields: Sequence[tuple[float, str]],
    *,
    left: float = LEFT,
    right: float = RIGHT,
) -> None:
    """A row of labelled boxes; widths are shares of the row."""
    total, x = sum(share for share, _ in fields), left
    canvas.setLineWidth(0.6)
    for share, label in fields:
        width = (right - left) * share / total
        canvas.rect(x, y, width, height)
        text(canvas, x + 2.5, y + height - 7.5, label, 6.4)
        x += width


def combs(canvas: Canvas, x: float, y: float, count: int, label: str) -> None:
    """One box a character."""
    text(canvas, x, y + 19, label, 6.4)
    canvas.setLineWidth(0.5)
    for i in range(count):
        canvas.rect(x + 13 * i, y, 13, 16)


def part(canvas: Canvas, y: float, number: int, title: str, note: str = "") -> None:
    """The black band that opens a part."""
    canvas.setFillColor(black)
    canvas.rect(LEFT, y, 46, 14, stroke=0, fill=1)
    canvas.setFillColor(white)
    text(canvas, LEFT + 7, y + 4, f"Part {number}", 9.4, BOLD)
    canvas.setFillColor(black)
    text(canvas, LEFT + 53, y + 4, title, 9.4, BOLD)
    text(canvas, LEFT + 59 + canvas.stringWidth(title, BOLD, 9.4), y + 4, note, 7.4)
    canvas.setLineWidth(1)
    canvas.line(LEFT, y, RIGHT, y)


def amount(canvas: Canvas, y: float, number: str, label: str, *, inner: bool = False) -> None:
    """A numbered line with dots that lead to its amount; inner amounts stand left of the shaded column."""
    text(canvas, LEFT + (4 if number[-1].isdigit() else 12), y + 5.5, number, 8, BOLD)
    text(canvas, LEFT + 30, y + 5.5, label, 8)
    box = 356.0 if inner else 460.0
    x = LEFT + 36 + canvas.stringWidth(label, SANS, 8)
    while x < LEFT + box - 26:
        canvas.drawString(x, y + 5.5, ".")
        x += 9
    canvas.setLineWidth(0.5)
    canvas.setFillColor(SHADE)
    if inner:
        canvas.rect(LEFT + 440, y, 20, LINE, fill=1)
        canvas.rect(LEFT + 460, y, RIGHT - LEFT - 460, LINE, fill=1)
    canvas.setFillColor(black)
    canvas.rect(LEFT + box - 20, y, 20, LINE)
    canvas.rect(LEFT + box, y, 84 if inner else RIGHT - LEFT - 460, LINE)
    canvas.setFont(BOLD, 7.4)
    canvas.drawCentredString(LEFT + box - 10, y + 5.5, number)


def paragraph(canvas: Canvas, words: str, x: float, top: float, width: float, look: object = FINE) -> float:
    flowable = Paragraph(words, look)
    _, height = flowable.wrap(width, HEIGHT)
    flowable.drawOn(canvas, x, top - height)
    return float(top - height)


def footer(canvas: Canvas, number: int) -> None:
    canvas.setLineWidth(1)
    canvas.line(LEFT, 44, RIGHT, 44)
    text(canvas, LEFT, 34, "See the separate instructions before you sign.", 7, BOLD)
    text(canvas, RIGHT - 118, 34, f"Form 418-H (rev. 3)  Page {number} of 3", 7, BOLD)
    stripes = random.Random(number)
    x = 250.0
    while x < 390:
        width = 0.7 + 1.6 * stripes.random()
        canvas.rect(x, 26, width, 15, stroke=0, fill=1)
        x += width + 0.7 + 1.4 * stripes.random()


def first(canvas: Canvas) -> None:
    top = HEIGHT - 40
    text(canvas, LEFT, top - 16, "Form", 8)
    text(canvas, LEFT + 22, top - 22, "418-H", 25, BOLD)
    text(canvas, LEFT, top - 36, "Harbour Licensing Office", 7.4)
    text(canvas, LEFT, top - 45, "Department of Small Ports", 7.4)
    canvas.setFont(BOLD, 14.5)
    canvas.drawCentredString(WIDTH / 2 + 8, top - 14, "Application for a Berth and Mooring Licence")
    canvas.setFont(SANS, 8)
    canvas.drawCentredString(WIDTH / 2 + 8, top - 27, "Attach proof of insurance and the survey certificate.")
    canvas.drawCentredString(WIDTH / 2 + 8, top - 38, "Print or type in black ink. Do not write in shaded areas.")
    canvas.setLineWidth(1)
    canvas.lines(
        [
            (LEFT + 108, top, LEFT + 108, top - 50),
            (RIGHT - 92, top, RIGHT - 92, top - 50),
            (LEFT, top - 50, RIGHT, top - 50),
        ]
    )
    text(canvas, RIGHT - 84, top - 12, "Approval 0418-22", 7)
    text(canvas, RIGHT - 84, top - 34, "Season", 8, BOLD)
    canvas.rect(RIGHT - 50, top - 40, 46, 18)

    y = top - 64
    x = check(canvas, LEFT, y, "First application")
    for label in ("Renewal", "Transfer of berth", "Change of vessel", "Correction of licence no."):
        x = check(canvas, x, y, label)
    canvas.line(x - 8, y - 2, RIGHT, y - 2)

    part(canvas, y - 26, 1, "Applicant", "(the person who is responsible for the vessel)")
    rows = (
        ((3, "1a  Family name"), (3, "1b  Given names"), (1, "1c  Initial")),
        ((4, "2  Street and number"), (1, "Apartment"), (2, "3  Telephone")),
        ((3, "4  Town"), (2, "Region"), (1.4, "Postal code"), (2, "Country")),
        ((3, "5  E-mail address"), (2, "6  Nationality")),
    )
    y -= 26
    for row in rows:
        y -= 28
        cells(canvas, y, 28, row)
    combs(canvas, LEFT + 2, y - 32, 10, "7  Identity number")
    combs(canvas, LEFT + 170, y - 32, 8, "8  Date of birth (day, month, year)")
    text(canvas, LEFT + 300, y - 13, "9  Status", 6.4)
    x = LEFT + 300
    for label in ("Owner", "Tenant", "Agent", "Club"):
        x = check(canvas, x, y - 28, label)
    part(canvas, y - 56, 2, "Fees", "(amounts without cents)")
    y -= 56
    lines = (
        ("10", "Base fee for the class of vessel (table 1 of the instructions)", False),
        ("11", "Length overall, in metres", True),
        ("12", "Rate per metre", True),
        ("13", "Multiply line 11 by line 12", False),
        ("14a", "Electricity", True),
        ("14b", "Fresh water", True),
        ("14c", "Winter storage ashore", True),
        ("15", "Add lines 14a through 14c", False),
        ("16", "Environmental levy, 4 % of line 13", False),
        ("17", "Total. Add lines 10, 13, 15 and 16", False),
        ("18", "Reduction for residents (attach form 77)", True),
        ("19", "Payments already made", True),
        ("20", "Add lines 18 and 19", False),
        ("21", "Amount due. Subtract line 20 from line 17", False),
    )
    for number, label, inner in lines:
        y -= LINE
        amount(canvas, y, number, label, inner=inner)
    y = paragraph(
        canvas,
        "<b>Notice.</b> The office asks for this information under section 12 of the Small Ports "
        "Act. You need not answer unless the "
        "form shows a valid approval number. The time needed to complete it is about 35 minutes. Answers "
        "are kept for six years and are "
        "passed to the coast guard on request. False statements may lead to the loss of the berth and to a "
        "fine.",
        LEFT,
        y - 10,
        RIGHT - LEFT,
    )
    canvas.setFillColor(SHADE)
    canvas.rect(LEFT, 52, RIGHT - LEFT, y - 64, fill=1)
    canvas.setFillColor(black)
    text(canvas, LEFT + 4, y - 22, "FOR OFFICE USE ONLY", 7.4, BOLD)
    for i, label in enumerate(("Received", "Checked by", "Berth", "Stamp")):
        text(canvas, LEFT + 4 + 134 * i, y - 34, label, 6.6)
        canvas.line(LEFT + 134 * i, y - 26, LEFT + 134 * i, 52)


def second(canvas: Canvas) -> None:
    top = HEIGHT - 54
    part(canvas, top, 3, "Vessel")
    y = top
    for row in (
        ((3, "22  Name of vessel"), (2, "23  Registration")),
        ((2, "24  Builder"), (1, "Year"), (2, "25  Hull number")),
        ((1, "26  Length"), (1, "Beam"), (1, "Draught"), (1, "Mast height"), (1, "Weight")),
    ):
        y -= 26
        cells(canvas, y, 26, row)
    for i, (label, options) in enumerate(
        (
            ("27  Type", ("Sailing", "Motor", "Fishing", "Rowing", "Workboat", "Other")),
            ("28  Hull", ("Wood", "Steel", "Glass fibre", "Aluminium")),
            ("29  Engine", ("None", "Outboard", "Diesel", "Electric")),
            ("30  Toilet tank", ("Yes", "No", "Not fitted")),
        )
    ):
        text(canvas, LEFT + 2, y - 16 - 16 * i, label, 8, BOLD)
        x = LEFT + 80
        for option in options:
            x = check(canvas, x, y - 16 - 16 * i, option)
    part(canvas, y - 92, 4, "Berth wanted", "(up to three, in order of preference)")
    y -= 92
    for i in range(3):
        y -= 25
        cells(canvas, y, 25, ((1.4, f"{31 + i}  Harbour"), (1, "Quay"), (1, "Number"), (1, "From"), (1, "Until")))
    part(canvas, y - 26, 5, "Crew and keepers", "(all who may move the vessel)")
    y -= 26
    columns = (
        (LEFT, 150, "Name"),
        (LEFT + 150, 110, "Certificate"),
        (LEFT + 260, 90, "Valid until"),
        (LEFT + 350, 90, "Telephone"),
        (LEFT + 440, 96, "Relation"),
    )
    for i in range(6):
        y -= 17
        for x, width, label in columns:
            if i == 0:
                canvas.setFillColor(SHADE)
            canvas.rect(x, y, width, 17, fill=int(i == 0))
            canvas.setFillColor(black)
            if i == 0:
                text(canvas, x + 3, y + 5, label, 7.6, BOLD)
    part(canvas, y - 28, 6, "Questions")
    y -= 28
    for i, question in enumerate(
        (
            "Has a berth been refused to you in the last five years?",
            "Do you live on board for more than 30 nights a year?",
            "Is the vessel let or used for trade?",
            "Does any other office hold a claim on the vessel?",
            "Has the vessel been surveyed after damage?",
            "Will fuel be stored ashore?",
        )
    ):
        y -= 16
        text(canvas, LEFT + 2, y, f"{34 + i}", 8, BOLD)
        text(canvas, LEFT + 24, y, question, 8)
        check(canvas, RIGHT - 92, y, "Yes")
        check(canvas, RIGHT - 46, y, "No")
    y -= 12
    text(canvas, LEFT + 2, y - 4, "If you answered yes to any question, explain here. Attach sheets if needed.", 7.4)
    canvas.setLineWidth(0.4)
    while y > 84:
        y -= 20
        canvas.line(LEFT, y - 6, RIGHT, y - 6)


def third(canvas: Canvas) -> None:
    top = HEIGHT - 54
    part(canvas, top, 7, "Declaration and signature")
    y = paragraph(
        canvas,
        "Under penalty of law I declare that I have examined this application and its attachments, "
        "and that to the best of my knowledge "
        "they are true and complete. I will keep the vessel insured and seaworthy, obey the harbour master, "
        "and leave the berth within "
        "fourteen days when the licence ends. I understand that the licence may not be sold or lent.",
        LEFT,
        top - 8,
        RIGHT - LEFT,
        SMALL,
    )
    for row in (("Signature of applicant", "Date"), ("Signature of co-owner, if any", "Date"), ("Print name", "Place")):
        y -= 36
        canvas.line(LEFT, y, LEFT + 350, y)
        canvas.line(LEFT + 372, y, RIGHT, y)
        text(canvas, LEFT, y - 8, row[0], 6.8)
        text(canvas, LEFT + 372, y - 8, row[1], 6.8)
    part(canvas, y - 40, 8, "Witness")
    y -= 40
    y = paragraph(
        canvas,
        "STATE OF ____________________ )<br/>COUNTY OF _________________ ) &nbsp; ss.<br/><br/>On "
        "this ______ day of ____________________, before me appeared "
        "______________________________________, known to me to be the person who signed above, and swore "
        "that the statements are true.",
        LEFT,
        y - 10,
        RIGHT - LEFT,
        style(SANS, 8.4, 14),
    )
    canvas.line(LEFT + 300, y - 32, RIGHT, y - 32)
    text(canvas, LEFT + 300, y - 41, "Notary or harbour master (seal)", 6.8)
    canvas.setDash(2, 2)
    canvas.circle(LEFT + 120, y - 34, 32)
    canvas.setDash()
    canvas.setFont(SANS, 7)
    canvas.drawCentredString(LEFT + 120, y - 36, "SEAL")
    part(canvas, y - 92, 9, "Payment")
    y -= 110
    x = LEFT + 2
    for label in (
        "Cheque enclosed",
        "Bank transfer",
        "Direct debit: complete the boxes below",
        "Paid at the counter, receipt no.",
    ):
        x = check(canvas, x, y, label)
    combs(canvas, LEFT + 2, y - 40, 22, "Account number")
    combs(canvas, LEFT + 320, y - 40, 8, "Bank code")
    y -= 60
    part(canvas, y - 14, 10, "Instructions")
    columns = (
        "<b>Who must file.</b> Anyone who keeps a vessel of more than 2.5 metres in a public harbour for over "
        "72 hours. Visitors use form 419. "
        "Rowing boats ashore are exempt.<br/><br/><b>When to file.</b> At least six weeks before the season. "
        "Late applications are put on "
        "the waiting list in the order in which they arrive.",
        "<b>Line 10.</b> Take the class from table 1. A vessel with two hulls counts as the next "
        "class.<br/><b>Line 14.</b> Enter the yearly "
        "flat rates; meters are read in March.<br/><b>Line 18.</b> Residents deduct one tenth of line 13, but "
        "no more than 120.<br/><b>Line 21.</b> "
        "If the amount is below zero, it is paid back or counted towards the next season.",
        "<b>Where to file.</b> By post or in person at the office of the harbour named on line 31. The "
        "counters are open on weekdays from nine "
        "to noon.<br/><br/><b>Appeals.</b> A refusal states its reason. You may appeal within thirty days; use "
        "form 90 and attach the "
        "decision.",
    )
    for i, words in enumerate(columns):
        paragraph(canvas, words, LEFT + 182 * i, y - 22, 172, SMALL)


def draw(path: Path) -> None:
    """Write the form."""
    canvas = new_canvas(path, letter, "Form 418-H")
    for number, page in enumerate((first, second, third), 1):
        footer(canvas, number)
        page(canvas)
        canvas.showPage()
    canvas.save()
