"""A reference card: landscape, three dense columns of formulas and commands under coloured headings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

from pen import Drawn, equation, plot, style
from reportlab.lib.colors import HexColor, black, white
from reportlab.lib.pagesizes import A4, landscape
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Flowable, Frame, PageTemplate, Paragraph, Table

WIDTH, HEIGHT = landscape(A4)
MARGIN, GAP, COLUMNS = 24.0, 14.0, 3
COLUMN = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
INK = HexColor("#123f6d")

BODY = style("STIXGeneral", 8.6, 9.8, spaceAfter=1.6)
HEAD = style(
    "STIXGeneralBol",
    10,
    12,
    textColor=white,
    backColor=INK,
    borderPadding=(0, 0, 1.4, 3),
    spaceBefore=6,
    spaceAfter=4,
    keepWithNext=1,
)
CODE = "Courier"

Entry = tuple[str, str] | str
# A section: its title, then paragraphs, formulas (in dollars), and pairs of a command and what it does.
PROBABILITY: Sequence[tuple[str, Sequence[Entry]]] = (
    ("Counting", (
        "Ordered choices of <i>k</i> from <i>n</i>, with and without putting back; unordered ones last.",
        r"$n^k \qquad \dfrac{n!}{(n-k)!} \qquad \binom{n}{k} = \dfrac{n!}{k!\,(n-k)!}$",
        r"$n! \approx \sqrt{2 \pi n}\ (n/e)^n$",
    )),
    ("Events", (
        r"$P(A \cup B) = P(A) + P(B) - P(A \cap B)$",
        r"$P(A \mid B) = \dfrac{P(B \mid A)\, P(A)}{P(B)}$",
        r"$P(B) = \sum_{i} P(B \mid A_i)\, P(A_i)$",
        "<b>Independent:</b> the joint probability is the product. Pairwise is weaker than mutual independence.",
        "<b>Odds form:</b> posterior odds are prior odds times the likelihood ratio.",
    )),
    ("Random Variables", (
        r"$\mathrm{E}[X] = \sum_x x\, p(x) \quad \mathrm{or} \quad \int x f(x)\, dx$",
        r"$\mathrm{Var}(X) = \mathrm{E}[X^2] - \mathrm{E}[X]^2$",
        r"$\mathrm{Var}(aX + bY) = a^2 \sigma_X^2 + b^2 \sigma_Y^2 + 2ab\, \sigma_{XY}$",
        r"$\mathrm{E}[X] = \mathrm{E}\,[\,\mathrm{E}[X \mid Y]\,]$",
        "Expectation is linear whether or not the variables are independent; variance is not.",
        r"$M(t) = \mathrm{E}[e^{tX}], \quad M^{(k)}(0) = \mathrm{E}[X^k]$",
    )),
    ("Inequalities", (
        r"$P(X \geq a) \leq \mathrm{E}[X] / a$",
        r"$P(|X - \mu| \geq k \sigma) \leq 1 / k^2$",
        r"$\mathrm{E}[XY]^2 \leq \mathrm{E}[X^2]\, \mathrm{E}[Y^2]$",
        r"$g(\mathrm{E}[X]) \leq \mathrm{E}[g(X)] \quad (g\ \mathrm{convex})$",
        r"$P(|\bar{X} - \mu| \geq t) \leq 2 e^{-2 n t^2}$",
    )),
    ("Discrete Laws", ("@discrete",)),
    ("Continuous Laws", ("@continuous", "@bells")),
    ("Limits", (
        r"$\bar{X}_n \rightarrow \mu, \qquad \sqrt{n}\, \dfrac{\bar{X}_n - \mu}{\sigma} \rightarrow N(0, 1)$",
        "<b>Delta method:</b> a smooth function of the mean is normal too, with",
        r"$\sigma_g^2 = \dot{g}(\mu)^2\, \sigma^2 / n$",
    )),
    ("Estimation", (
        r"$\hat{\theta} = \mathrm{arg\,max}_{\theta} \sum_i \log f(x_i; \theta)$",
        r"$s^2 = \dfrac{1}{n-1} \sum_{i=1}^{n} (x_i - \bar{x})^2$",
        r"$I(\theta) = -\mathrm{E}\left[ \partial^2 \log f / \partial \theta^2 \right], \quad "
        r"\mathrm{Var}(\hat{\theta}) \geq \dfrac{1}{n I(\theta)}$",
        r"$\mathrm{MSE} = \mathrm{bias}^2 + \mathrm{variance}$",
        r"$\bar{x} \pm t_{n-1}\, s / \sqrt{n}$",
    )),
    ("Tests", (
        "<b>Type I:</b> reject what is true. <b>Type II:</b> keep what is false. <b>Power:</b> one minus the latter.",
        r"$t = \dfrac{\bar{x} - \bar{y}}{s_p \sqrt{1/n + 1/m}}$",
        r"$\chi^2 = \sum_k \dfrac{(O_k - E_k)^2}{E_k}$",
        r"$F = \dfrac{\mathrm{SS}_b / (k - 1)}{\mathrm{SS}_w / (n - k)}$",
        "Of <i>m</i> tests, reject those below their rank times the level over <i>m</i>.",
    )),
    ("Regression", (
        r"$\hat{\beta} = (X^{T} X)^{-1} X^{T} y$",
        r"$\hat{\beta}_{\lambda} = (X^{T} X + \lambda I)^{-1} X^{T} y$",
        r"$R^2 = 1 - \dfrac{\sum (y_i - \hat{y}_i)^2}{\sum (y_i - \bar{y})^2}$",
        r"$p(x) = \dfrac{1}{1 + e^{-\beta^{T} x}}$",
        "Look at the residuals before the numbers. Leverage is the diagonal of the hat matrix.",
    )),
)  # fmt: skip

COMMANDS: Sequence[tuple[str, Sequence[Entry]]] = (
    ("Making Tables", (("t = table(x=.., y=..)", "columns by name"), ("read('f.csv')", "from a file"), ("t.rows",
    "number of rows"),
        ("t.head(5)", "the first five"), ("t.copy()", "a deep copy"), ("t.save('f')", "write back"), ("empty(n, k)",
        "n by k"),
        ("t.names", "list of columns"), ("t.types", "type of each"))),
    ("Choosing", (("t['x']", "one column"), ("t[2:9]", "rows 2 to 8"), ("t[-1]", "the last row"), ("t.where(x > 3)",
    "rows that hold"),
        ("t.drop('y')", "without a column"), ("t.sample(n)", "random rows"), ("t.unique('x')", "each value once"),
        ("t.sort('x')", "ascending"), ("t.sort('-x')", "descending"), ("t.isin(s)", "values in a set"))),
    ("Changing", (("t.set(z=x + y)", "a new column"), ("t.rename(x='a')", "another name"), ("t.fill(0)",
    "replace gaps"),
        ("t.cast(x=int)", "another type"), ("t.clip(0, 1)", "limit values"), ("t.rank('x')", "ranks, ties shared"),
        ("t.shift(1)", "move down a row"), ("t.diff()", "row differences"), ("t.cumsum()", "running sums"),
        ("t.round(2)", "digits"))),
    ("Joining", (("a.join(b, on='k')", "rows in both"), ("a.left(b, on='k')", "all rows of a"), ("a.cross(b)",
    "every pair"),
        ("stack(a, b)", "one below the other"), ("a.beside(b)", "side by side"), ("a.minus(b)", "rows of a not in b"),
        "Keys must be unique on the right; otherwise rows multiply. Check <b>rows</b> before and after.")),
    ("Grouping", (("g = t.by('k')", "groups"), ("g.count()", "size of each"), ("g.mean('x')", "mean of each"),
    ("g.sum('x')", "sums"),
        ("g.first()", "first row of each"), ("g.apply(f)", "any function"), ("t.pivot(k, x)", "long to wide"),
        ("t.melt('k')", "wide to long"),
        ("g.rank('x')", "rank within"), ("g.share('x')", "part of the group"))),
    ("Summaries", (("mean(x)", "arithmetic mean"), ("median(x)", "middle value"), ("sd(x)", "standard deviation"),
        ("mad(x)", "median deviation"), ("quantile(x, q)", "any quantile"), ("corr(x, y)", "correlation"),
        ("cov(x, y)", "covariance"),
        ("table2(x, y)", "two-way counts"), ("skew(x)", "third moment"), ("iqr(x)", "upper less lower quartile"))),
    ("Random Numbers", (("seed(7)", "start again"), ("normal(n)", "standard normal"), ("uniform(n)", "between 0 and 1"),
        ("poisson(n, m)", "mean m"), ("binom(n, k, p)", "k trials"), ("choice(x, n)", "with putting back"),
        ("shuffle(x)", "random order"), ("boot(x, f)", "bootstrap of f"))),
    ("Fitting", (("fit('y ~ x')", "straight line"), ("fit('y ~ x + z')", "two predictors"), ("fit('y ~ x * z')",
    "with interaction"),
        ("m.coef", "coefficients"), ("m.se", "standard errors"), ("m.predict(t)", "new rows"), ("m.resid", "residuals"),
        ("anova(a, b)", "compare two fits"), ("cv(m, 10)", "ten folds"), ("ridge(m, 0.1)", "penalised"))),
    ("Testing", (("ttest(x, y)", "two means"), ("paired(x, y)", "same subjects"), ("wilcox(x, y)", "by ranks"),
    ("chisq(tab)", "counts"),
        ("ks(x, y)", "two distributions"), ("power(n, d)", "power for an effect"), ("adjust(p)", "many tests"),
        ("perm(x, y, f)", "permutations"))),
    ("Plotting", (("line(x, y)", "a curve"), ("dots(x, y)", "a scatter"), ("hist(x, 30)", "30 bins"), ("box('x ~ k')",
    "a box a group"),
        ("bars(tab)", "counts"), ("grid(2, 3)", "panels"), ("title('..')", "above"), ("save('f.pdf')", "as vectors"),
        ("log('y')", "log axis"), "@waves")),
    ("Dates", (("date('2020-02-29')", "from text"), ("d.year, d.month", "parts"), ("d + days(3)", "arithmetic"),
    ("week(d)", "week number"),
        ("t.every('1h')", "resample"), ("t.lag('7d')", "a week ago"), ("zone(d, 'UTC')", "time zone"))),
    ("Text", (("lower(s)", "small letters"), ("split(s, ',')", "to a list"), ("match(s, p)", "pattern, true or false"),
    ("sub(s, p, r)", "replace"),
        ("pad(s, 8)", "to a width"), ("len(s)", "characters"), ("join(l, '-')", "glue"))),
    ("Keys", (("ctrl-enter", "run the line"), ("ctrl-l", "clear"), ("tab", "complete"), ("f1", "help on the word"),
    ("esc", "stop"),
        ("ctrl-up", "earlier commands"), "<b>Exit</b> with <font name='Courier'>quit()</font>; unsaved tables are "
                                         "asked for.")),
    ("Linear Algebra", (
        r"$(AB)^{T} = B^{T} A^{T}, \quad (AB)^{-1} = B^{-1} A^{-1}$",
        r"$A v = \lambda v, \quad \det A = \prod_i \lambda_i, \quad \mathrm{tr}\, A = \sum_i \lambda_i$",
        r"$A = U \Sigma V^{T}, \quad A^{+} = V \Sigma^{+} U^{T}$",
        r"$\|x + y\| \leq \|x\| + \|y\|, \quad |x^{T} y| \leq \|x\|\, \|y\|$",
        "A symmetric matrix is positive definite when all its eigenvalues are, or when it has a Cholesky factor.",
    )),
    ("Series", (
        r"$\sum_{k=0}^{n} r^k = \dfrac{1 - r^{n+1}}{1 - r}, \qquad e^x = \sum_{k=0}^{\infty} \dfrac{x^k}{k!}$",
        r"$\sum_{k=1}^{n} k = \dfrac{n(n+1)}{2}, \qquad \log(1+x) = x - \dfrac{x^2}{2} + \ldots$",
        r"$\int_{-\infty}^{\infty} e^{-x^2}\, dx = \sqrt{\pi}, \qquad \Gamma(n+1) = n!$",
    )),
    ("Normal Distribution Function", ("@normal",)),
)  # fmt: skip


def law_table(rows: Sequence[Sequence[str]]) -> Table:
    grid = [
        ("FONT", (0, 0), (-1, -1), "STIXGeneral", 7.8),
        ("FONT", (0, 0), (-1, 0), "STIXGeneralBol", 7.8),
        ("LINEBELOW", (0, 0), (-1, 0), 0.5, INK),
        ("ROWBACKGROUNDS", (0, 1), (-1, -1), [white, HexColor("#eef3f9")]),
        ("TOPPADDING", (0, 0), (-1, -1), 0.3),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 1.4),
        ("LEFTPADDING", (0, 0), (-1, -1), 2),
        ("RIGHTPADDING", (0, 0), (-1, -1), 1),
    ]
    return Table(rows, colWidths=[COLUMN * part for part in (0.25, 0.39, 0.15, 0.21)], style=grid, rowHeights=11.4)


def curves(canvas: Canvas, waves: bool) -> None:
    xs = [i / 8 for i in range(-32, 33)]
    if waves:
        lines = [[(x, math.sin(k * x) / k) for x in xs] for k in (1, 2, 3)]
    else:
        lines = [[(x, math.exp(-x * x / 2 / s / s) / s / 2.507) for x in xs] for s in (0.6, 1, 1.6)]
    low = -1 if waves else 0
    plot(
        canvas,
        (22, 14, COLUMN - 32, 58),
        lines,
        x_range=(-4, 4),
        y_range=(low, 1 if waves else 0.7),
        font="STIXGeneral",
        size=6,
        ticks=(8, 2),
    )


def normal_table() -> Table:
    rows = [["z", *(f".0{digit}" for digit in range(0, 10, 2))]]
    for tenth in range(0, 26, 2):
        rows.append(
            [f"{tenth / 10:.1f}", *(f"{NormalDist().cdf((tenth + digit / 10) / 10):.4f}" for digit in range(0, 10, 2))]
        )
    grid = [
        ("FONT", (0, 0), (-1, -1), "STIXGeneral", 7.6),
        ("LINEBELOW", (0, 0), (-1, 0), 0.5, INK),
        ("LINEAFTER", (0, 0), (0, -1), 0.5, INK),
        ("ALIGN", (0, 0), (-1, -1), "CENTER"),
        ("TOPPADDING", (0, 0), (-1, -1), 0),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 1.4),
    ]
    return Table(rows, colWidths=COLUMN / 6, rowHeights=10, style=grid)


FIGURES: dict[str, Flowable] = {
    "@discrete": law_table((("Law", "p(k)", "mean", "variance"), ("Bernoulli", "p, 1 − p", "p", "pq"), ("Binomial",
    "C(n, k) p^k q^(n−k)", "np", "npq"),
                            ("Geometric", "q^(k−1) p", "1/p", "q/p²"), ("Poisson", "λ^k e^(−λ) / k!", "λ", "λ"),
                            ("Uniform", "1/n", "(n+1)/2", "(n²−1)/12"))),
    "@continuous": law_table((("Law", "density", "mean", "variance"), ("Uniform", "1/(b − a)", "(a+b)/2", "(b−a)²/12"),
    ("Exponential", "λ e^(−λx)", "1/λ", "1/λ²"),
                              ("Normal", "e^(−z²/2) / σ√(2π)", "μ", "σ²"), ("Gamma", "λ^a x^(a−1) e^(−λx) / Γ(a)",
                              "a/λ", "a/λ²"),
                              ("Beta", "x^(a−1) (1−x)^(b−1) / B", "a/(a+b)", "·"), ("Cauchy", "1 / π(1 + x²)", "none",
                              "none"))),
    "@normal": normal_table(),
    "@bells": Drawn(COLUMN, 76, lambda canvas: curves(canvas, waves=False)),
    "@waves": Drawn(COLUMN, 76, lambda canvas: curves(canvas, waves=True)),
}  # fmt: skip


def command_row(command: str, meaning: str) -> Drawn:
    def paint(canvas: Canvas) -> None:
        canvas.setFont(CODE, 7.8)
        canvas.drawString(2, 2, command)
        canvas.setFont("STIXGeneral", 8.5)
        canvas.drawString(COLUMN * 0.5, 2, meaning)

    return Drawn(COLUMN, 10.1, paint)


def section(title: str, entries: Sequence[Entry]) -> list[Flowable]:
    parts: list[Flowable] = [Paragraph(title, HEAD)]
    for entry in entries:
        if isinstance(entry, tuple):
            parts.append(command_row(*entry))
        elif entry.startswith("$"):
            parts.append(equation(entry.strip("$"), COLUMN, size=9, pad=1.8))
        elif entry.startswith("@"):
            parts.append(FIGURES[entry])
        else:
            parts.append(Paragraph(entry, BODY))
    return parts


def frame_page(canvas: Canvas, document: BaseDocTemplate) -> None:
    canvas.setFillColor(INK)
    canvas.setFont("STIXGeneralBol", 13)
    canvas.drawString(MARGIN, HEIGHT - 26, "Chance and Data: Reference Card")
    canvas.setFont("STIXGeneral", 7.5)
    canvas.drawRightString(WIDTH - MARGIN, HEIGHT - 26, f"version 3.2 · side {document.page} of 2 · free to copy")
    canvas.setFillColor(black)
    canvas.setStrokeColor(HexColor("#b9c6d6"))
    canvas.setLineWidth(0.4)
    for i in range(1, COLUMNS):
        x = MARGIN + i * (COLUMN + GAP) - GAP / 2
        canvas.line(x, 18, x, HEIGHT - 38)


def draw(path: Path) -> None:
    """Write the cheat sheet."""
    frames = [Frame(MARGIN + i * (COLUMN + GAP), 16, COLUMN, HEIGHT - 56, 0, 0, 0, 0) for i in range(COLUMNS)]
    document = BaseDocTemplate(
        str(path),
        pagesize=(WIDTH, HEIGHT),
        pageTemplates=[PageTemplate("card", frames, onPage=frame_page)],
        invariant=1,
        pageCompression=1,
        title="Chance and Data: Reference Card",
    )
    document.build([part for title, entries in (*PROBABILITY, *COMMANDS) for part in section(title, entries)])
