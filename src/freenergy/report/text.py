"""Plain text and numbers as HTML."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Container
from numbers import Integral, Real

__all__ = ["escape", "inline", "is_amount", "is_number", "number", "slug"]

_MINUS = "\N{MINUS SIGN}"
_THIN_SPACE = "\N{NARROW NO-BREAK SPACE}"
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
# Ahead of a number that stands by itself: not in CD-1, 2024-05-01 or 1e-7.
_HYPHEN_MINUS = re.compile(r"(?<![\w.-])-(?=\.?\d)")
_AMOUNT = re.compile(r"[-+−]?\d[\d.]*(×10[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)?( ± [\d.]+)?|–")
# Code comes first, so that asterisks between backticks stay asterisks.
_MARKUP = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*", re.DOTALL)


def escape(text: object) -> str:
    """Escape text for HTML, in content and in quoted attributes alike.

    Examples
    --------
    >>> escape('a < "b"')
    'a &lt; &quot;b&quot;'
    """
    return html.escape(str(text), quote=True)


def inline(text: object) -> str:
    """Escape text, then turn ```code``` and ``**bold**`` into elements, and set minus signs.

    Examples
    --------
    >>> inline("**CD-1** & `fit(X)`: -0.5, not `-0.5`")
    '<strong>CD-1</strong> &amp; <code>fit(X)</code>: −0.5, not <code>-0.5</code>'
    """

    def element(match: re.Match[str]) -> str:
        code, bold = match.groups()
        if code is not None:
            return f"<code>{code}</code>"
        return f"<strong>{marked(bold)}</strong>"

    def marked(part: str) -> str:
        pieces, end = [], 0
        for match in _MARKUP.finditer(part):
            pieces += [_HYPHEN_MINUS.sub(_MINUS, part[end : match.start()]), element(match)]
            end = match.end()
        return "".join([*pieces, _HYPHEN_MINUS.sub(_MINUS, part[end:])])

    return marked(escape(text))


def is_number(value: object) -> bool:
    """Tell whether a value is a real number and not a truth value.

    Examples
    --------
    >>> is_number(1.5), is_number(True), is_number("1.5")
    (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def is_amount(value: object) -> bool:
    """Tell whether a text is a number, with or without its error.

    Examples
    --------
    >>> is_amount("-24.50 ± 0.01"), is_amount("85.1"), is_amount("CD-1"), is_amount("3 seeds")
    (True, True, False, False)
    """
    return isinstance(value, str) and _AMOUNT.fullmatch(value) is not None


def number(value: object, digits: int = 4) -> str:
    """Write a number for people: significant digits, no exponent where it can be helped.

    Integers keep all their digits, and five or more of them are grouped. Anything that is not a
    number is written as text.

    Parameters
    ----------
    value : object
        The value of one table cell.
    digits : int, default=4
        Significant digits of a number that is not an integer.

    Examples
    --------
    >>> number(-85.10449), number(0.5), number(1.2346e-7), number(512)
    ('−85.10', '0.5000', '1.235×10⁻⁷', '512')
    >>> number(float("nan")), number(float("inf")), number(None), number(True)
    ('–', '∞', '', 'yes')
    """
    if value is None:
        return ""
    if isinstance(value, bool) or type(value).__name__ == "bool":  # the latter is NumPy's
        return "yes" if value else "no"
    if not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral):
        return _signed(_grouped(str(abs(int(value)))), int(value) < 0)
    real = float(value)
    if math.isnan(real):
        return "–"
    if math.isinf(real):
        return _signed("∞", real < 0)
    if real == 0:
        return "0"
    # Formatting rounds first, so that 9.9999 counts as 10.00 and not as 9.9999.
    mantissa, _, power = f"{abs(real):.{digits - 1}e}".partition("e")
    exponent = int(power)
    if not -3 <= exponent < 7:
        exponent_text = str(exponent).translate(_SUPERSCRIPTS)
        return _signed(f"{mantissa}×10{exponent_text}", real < 0)
    return _signed(_grouped(f"{abs(real):.{max(digits - 1 - exponent, 0)}f}"), real < 0)


def slug(title: str, taken: Container[str] = ()) -> str:
    """Turn a title into an identifier for links that is not yet taken on the page.

    Examples
    --------
    >>> slug("What is β?"), slug("Results", taken={"results"})
    ('what-is-β', 'results-2')
    """
    stem = re.sub(r"\W+", "-", title.lower()).strip("-") or "section"
    candidate, count = stem, 1
    while candidate in taken:
        count += 1
        candidate = f"{stem}-{count}"
    return candidate


def _signed(text: str, negative: bool) -> str:
    return _MINUS + text if negative else text


def _grouped(text: str) -> str:
    """Group the integer part of a positive number by thousands from five digits on."""
    whole, point, fraction = text.partition(".")
    if len(whole) >= 5:
        whole = f"{int(whole):,}".replace(",", _THIN_SPACE)
    return whole + point + fraction
