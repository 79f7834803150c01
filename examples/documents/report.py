"""A security audit: cover, contents, summary with a chart, table of findings, findings in detail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pen import Drawn, Prose, style
from reportlab.lib.colors import HexColor, white
from reportlab.lib.enums import TA_JUSTIFY
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, PageBreak, Paragraph, SimpleDocTemplate, Spacer, Table

PAGE_WIDTH, PAGE_HEIGHT = A4
WIDTH = PAGE_WIDTH - 2 * 62
NAVY, ORANGE, LINE = HexColor("#1d2b4f"), HexColor("#e07b1a"), HexColor("#c6ccd8")
FONT, BOLD = "DejaVuSans", "DejaVuSans-Bold"
BODY = style(FONT, 8.8, 13, alignment=TA_JUSTIFY, spaceAfter=6)
ITEM = style(FONT, 8.8, 13, leftIndent=14, bulletIndent=4, spaceAfter=2)
H1 = style(BOLD, 15, 20, textColor=NAVY, spaceBefore=12, spaceAfter=8)
H2 = style(BOLD, 10.6, 15, textColor=NAVY, spaceBefore=9, spaceAfter=4)
CELL = style(FONT, 7.8, 10)
CODE = style("Courier", 7.8, 10, backColor=HexColor("#f2f4f8"), borderPadding=6, spaceBefore=8, spaceAfter=12)

SEVERITY = {"Critical": "#8e1b1b", "High": "#d6402b", "Medium": "#e79a1f", "Low": "#3c82c4", "Note": "#7d8796"}
FINDINGS = (
    ("LV-01", "Withdrawals can be repeated before the balance is written", "Critical", "Fixed"),
    ("LV-02", "The keeper's key can be replaced by anyone during set-up", "High", "Fixed"),
    ("LV-03", "Rounding favours the last depositor", "High", "Fixed"),
    ("LV-04", "Price is read from a single source", "Medium", "Accepted"),
    ("LV-05", "Fees above one hundred per cent are possible", "Medium", "Fixed"),
    ("LV-06", "Pausing does not stop transfers", "Medium", "Fixed"),
    ("LV-07", "Unbounded loop over members", "Low", "Open"),
    ("LV-08", "Missing events for changes of roles", "Low", "Fixed"),
    ("LV-09", "Time stamps compared for equality", "Low", "Fixed"),
    ("LV-10", "Unused variables and imports", "Note", "Fixed"),
    ("LV-11", "Documentation differs from the code in four places", "Note", "Fixed"),
)  # fmt: skip
CONTENTS = (
    (0, "1  About this report", 3), (0, "2  Executive summary", 3), (1, "2.1  Scope", 3), (1, "2.2  Result", 3), (0,
    "3  Risk classification", 4),
    (0, "4  Findings at a glance", 4), (0, "5  Findings in detail", 5), (1, "5.1  Critical", 5), (2,
    "LV-01  Repeated withdrawals", 5), (1, "5.2  High", 6),
    (2, "LV-02  Replacement of the keeper's key", 6), (2, "LV-03  Rounding", 6), (0, "Appendix A  Files reviewed", 6),
)  # fmt: skip
PROSE = Prose(
    11,
    subjects=("the vault", "the keeper contract", "an attacker", "the withdrawal path", "each role",
    "the deployment script", "the share counter",
              "a depositor", "the price reader"),
    verbs=("relies on", "does not check", "can call", "updates", "trusts", "is limited by", "was found to bypass",
    "reads"),
    objects=("the balance of the caller", "the order of transactions", "the result of the external call",
    "the fee set by the owner", "the delay of two days",
             "the list of members", "a value that has not been written yet", "the documented invariant"),
)  # fmt: skip


def badge(severity: str) -> Drawn:
    """The severity as white letters on its colour."""

    def paint(canvas: Canvas) -> None:
        canvas.setFillColor(HexColor(SEVERITY[severity]))
        canvas.roundRect(0, 0, 48, 12, 3, stroke=0, fill=1)
        canvas.setFillColor(white)
        canvas.setFont(BOLD, 7)
        canvas.drawCentredString(24, 3.4, severity)

    return Drawn(48, 12, paint, "LEFT")


def ruled(rows: Sequence[Sequence[object]], widths: Sequence[float]) -> Table:
    return Table(
        rows,
        colWidths=widths,
        style=[
            ("FONT", (0, 0), (-1, -1), FONT, 7.8),
            ("FONT", (0, 0), (-1, 0), BOLD, 7.8),
            ("BACKGROUND", (0, 0), (-1, 0), NAVY),
            ("TEXTCOLOR", (0, 0), (-1, 0), white),
            ("LINEBELOW", (0, 1), (-1, -1), 0.5, LINE),
            ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
            ("TOPPADDING", (0, 0), (-1, -1), 4),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 4),
        ],
    )


def chart(canvas: Canvas) -> None:
    """Findings by severity, as horizontal bars."""
    canvas.setFont(FONT, 8)
    for i, (severity, color) in enumerate(SEVERITY.items()):
        y = 92 - 20 * i
        count = sum(finding[2] == severity for finding in FINDINGS)
        canvas.setFillColor(HexColor(color))
        canvas.rect(80, y, 90 * count, 13, stroke=0, fill=1)
        canvas.setFillColor(NAVY)
        canvas.drawRightString(72, y + 3.5, severity)
        canvas.drawString(86 + 90 * count, y + 3.5, str(count))
    canvas.setStrokeColor(LINE)
    canvas.line(80, 6, 80, 110)


def matrix() -> Table:
    rows = [
        ["", "Impact: high", "Impact: medium", "Impact: low"],
        ["Likely", "Critical", "High", "Medium"],
        ["Possible", "High", "Medium", "Low"],
        ["Unlikely", "Medium", "Low", "Note"],
    ]
    table = ruled(rows, [WIDTH / 4] * 4)
    for row in range(1, 4):
        for col in range(1, 4):
            table.setStyle(
                [
                    ("BACKGROUND", (col, row), (col, row), HexColor(SEVERITY[rows[row][col]])),
                    ("TEXTCOLOR", (col, row), (col, row), white),
                ]
            )
    table.setStyle([("ALIGN", (1, 0), (-1, -1), "CENTER"), ("GRID", (1, 1), (-1, -1), 1.5, white)])
    return table


def contents() -> list[Flowable]:
    def line(level: int, text: str, page: int) -> Drawn:
        font = BOLD if level == 0 else FONT

        def paint(canvas: Canvas) -> None:
            canvas.setFont(font, 9)
            canvas.setFillColor(NAVY)
            left = 16.0 * level
            canvas.drawString(left, 5, text)
            canvas.drawRightString(WIDTH, 5, str(page))
            x = left + canvas.stringWidth(text, font, 9) + 8
            while x < WIDTH - 16:
                canvas.drawString(x, 5, ".")
                x += 6

        return Drawn(WIDTH, 22 if level == 0 else 18, paint)

    return [Paragraph("Contents", H1), Spacer(1, 8), *(line(*entry) for entry in CONTENTS)]


def finding(number: int, code: str, advice: str) -> list[Flowable]:
    name, title, severity, status = FINDINGS[number]
    facts = Table(
        [[badge(severity), f"Status: {status}", "Type: logic", f"File: {('Vault', 'Keeper', 'Shares')[number]}.ct"]],
        colWidths=[60, 110, 110, 150],
        style=[
            ("FONT", (0, 0), (-1, -1), FONT, 8),
            ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
            ("BOX", (0, 0), (-1, -1), 0.6, LINE),
        ],
        hAlign="LEFT",
    )
    return [
        Paragraph(f"{name}&nbsp;&nbsp;{title}", H2),
        facts,
        Spacer(1, 6),
        Paragraph("<b>Description.</b> " + PROSE.paragraph(6), BODY),
        Paragraph(code, CODE),
        Paragraph("<b>Impact.</b> " + PROSE.paragraph(3), BODY),
        Paragraph("<b>Recommendation.</b> " + advice, BODY),
        Paragraph("<b>Reply of the team.</b> Agreed and changed as proposed; a test now covers the case.", BODY),
    ]


def listing(*lines: str) -> str:
    return "<br/>".join(f"{i:>3}  {line}".replace(" ", "&nbsp;") for i, line in enumerate(lines, 41))


def story() -> list[Flowable]:
    goals = (
        "funds can leave only on behalf of their owner",
        "roles cannot be taken or lost by accident",
        "rounding never creates value",
        "a paused vault is paused in every path",
    )
    table = ruled(
        [
            ["ID", "Finding", "Severity", "Status"],
            *([name, Paragraph(title, CELL), badge(severity), status] for name, title, severity, status in FINDINGS),
        ],
        [46, 281, 74, 70],
    )
    files = ruled(
        [
            ["File", "Lines", "Digest"],
            *(
                [name, lines, digest]
                for name, lines, digest in (
                    ("src/Vault.ct", "412", "9b1f 44c0 7ae2"),
                    ("src/Keeper.ct", "188", "03de 91b7 c5f8"),
                    ("src/Shares.ct", "236", "e77a 120d 6f39"),
                    ("src/Price.ct", "97", "5c08 bb41 22d6"),
                    ("script/deploy.ct", "141", "a4f3 0e95 d817"),
                )
            ),
        ],
        [231, 80, 160],
    )
    return [
        Spacer(1, 1),
        PageBreak(),
        *contents(),
        PageBreak(),
        Paragraph("1&nbsp; About this report", H1),
        Paragraph(
            "Northfold Reviews was asked by the Larkspur association to review the vault that holds its "
            "members' deposits before release. Two "
            "reviewers worked for three weeks. A review lowers the risk of errors; it cannot show that there "
            "are none, and it is no "
            "advice to invest.",
            BODY,
        ),
        Paragraph("2&nbsp; Executive summary", H1),
        Paragraph(PROSE.paragraph(5), BODY),
        Paragraph("2.1&nbsp; Scope", H2),
        Paragraph(
            "Five files with 1,074 lines were in scope, at the revision named in appendix A. We asked whether", BODY
        ),
        *(Paragraph(goal + ";", ITEM, bulletText="•") for goal in goals),
        Spacer(1, 6),
        Paragraph("2.2&nbsp; Result", H2),
        Paragraph(
            "We found eleven problems, one of them critical. Nine have been fixed and the changes reviewed; one "
            "is accepted and one is open. "
            "The code is well structured, and its tests cover 87 % of the lines.",
            BODY,
        ),
        Drawn(WIDTH, 118, chart),
        Paragraph(PROSE.paragraph(4), BODY),
        PageBreak(),
        Paragraph("3&nbsp; Risk classification", H1),
        Paragraph("The severity of a finding follows from its impact and its likelihood.", BODY),
        matrix(),
        Paragraph("4&nbsp; Findings at a glance", H1),
        table,
        Spacer(1, 10),
        Paragraph(PROSE.paragraph(4), BODY),
        PageBreak(),
        Paragraph("5&nbsp; Findings in detail", H1),
        *finding(
            0,
            listing(
                "function withdraw(amount) {",
                "    require(balance[caller] >= amount);",
                "    send(caller, amount);      // control leaves here",
                "    balance[caller] -= amount; // too late",
                "    emit Withdrawn(caller, amount);",
                "}",
            ),
            "Write the balance before the payment, and guard the function against being entered twice.",
        ),
        Paragraph("<b>Steps to reproduce.</b>", BODY),
        *(
            Paragraph(step, ITEM, bulletText=f"{i}.")
            for i, step in enumerate(
                (
                    "Deposit one unit from a contract that calls back.",
                    "Call withdraw; on payment, call it again.",
                    "Stop when the vault is empty: 34 rounds in our test.",
                ),
                1,
            )
        ),
        PageBreak(),
        *finding(
            1,
            listing("function setUp(key) {", "    keeper = key;             // no check of the caller", "}"),
            "Set the key when the contract is created, or allow only the deployer to call the function, once.",
        ),
        *finding(2, listing("shares = amount * total / assets + 1;"), "Round down on deposit and up on withdrawal."),
        Paragraph("Appendix A&nbsp; Files reviewed", H2),
        files,
    ]


def cover(canvas: Canvas, document: SimpleDocTemplate) -> None:
    canvas.setFillColor(NAVY)
    canvas.rect(0, PAGE_HEIGHT - 330, PAGE_WIDTH, 330, stroke=0, fill=1)
    canvas.setFillColor(ORANGE)
    for i, height in enumerate((90, 64, 38)):  # the logo: three folded sheets
        path = canvas.beginPath()
        left = 62 + 34 * i
        path.moveTo(left, PAGE_HEIGHT - 170)
        path.lineTo(left + 26, PAGE_HEIGHT - 170)
        path.lineTo(left + 26, PAGE_HEIGHT - 170 + height)
        path.lineTo(left, PAGE_HEIGHT - 182 + height)
        path.close()
        canvas.drawPath(path, stroke=0, fill=1)
    canvas.setFillColor(white)
    canvas.setFont(BOLD, 19)
    canvas.drawString(176, PAGE_HEIGHT - 168, "Northfold Reviews")
    canvas.setFont(BOLD, 30)
    canvas.drawString(62, PAGE_HEIGHT - 262, "Larkspur Vault")
    canvas.setFont(FONT, 15)
    canvas.drawString(62, PAGE_HEIGHT - 290, "Security audit report")
    canvas.setFillColor(NAVY)
    for i, (name, value) in enumerate(
        (
            ("Client", "Larkspur Savings Association"),
            ("Reviewers", "P. Quennell, S. Adebayo"),
            ("Version", "2.0, after fixes"),
            ("Period", "3 to 21 March"),
            ("Classification", "Public"),
        )
    ):
        y = PAGE_HEIGHT - 400 - 24 * i
        canvas.setFont(BOLD, 10)
        canvas.drawString(62, y, name)
        canvas.setFont(FONT, 10)
        canvas.drawString(170, y, value)
        canvas.setStrokeColor(LINE)
        canvas.line(62, y - 8, PAGE_WIDTH - 62, y - 8)


def page_frame(canvas: Canvas, document: SimpleDocTemplate) -> None:
    canvas.setFont(FONT, 7.4)
    canvas.setFillColor(HexColor("#6b7487"))
    canvas.drawString(62, PAGE_HEIGHT - 40, "Larkspur Vault: security audit report")
    canvas.drawRightString(PAGE_WIDTH - 62, PAGE_HEIGHT - 40, "Northfold Reviews")
    canvas.drawRightString(PAGE_WIDTH - 62, 34, f"{document.page} / 6")
    canvas.setStrokeColor(ORANGE)
    canvas.setLineWidth(1.2)
    canvas.line(62, PAGE_HEIGHT - 46, PAGE_WIDTH - 62, PAGE_HEIGHT - 46)


def draw(path: Path) -> None:
    """Write the report."""
    document = SimpleDocTemplate(
        str(path),
        pagesize=A4,
        leftMargin=56,
        rightMargin=56,
        topMargin=60,
        bottomMargin=50,
        invariant=1,
        pageCompression=1,
        title="Larkspur Vault: security audit report",
    )
    document.build(story(), onFirstPage=cover, onLaterPages=page_frame)
