"""না put in and taken out, so that what is left is well-formed Bengali that says the opposite.

Put in: after the finite verb that ends a statement (আমি বুঝতে পারছি। আমি বুঝতে পারছি না।), নেই in place of আছি, আছে (পাশে আছি।
পাশে নেই।). Not in a question, not in a statement that is negated already, and not after what না would not negate: a
command (বলুন না coaxes), a perfect (করেছি: its negative is করিনি), a form that need not be a verb (পড়ে, বলে, শুনে).

Taken out: in a statement, a না with a word on its left and a word or the end of the sentence on its right. Not the না of
তাই না, কি না, কিছু না, আর না, of coaxing (বলুন না, বলো না), of alternatives and contrasts (রাগ, না ভয়; মানুষ না, জিনিস), or
part of a word (না-বলা).
"""

from __future__ import annotations

import re

from bnbench.metrics.audit.spelling import decompose_nukta

_LETTER = "\u0980-\u09fe\u200c\u200d"
_SENTENCE = re.compile("[^।॥?!\n]+[।॥?!]*")
_LAST_WORD = re.compile(f"(?<![{_LETTER}-])([{_LETTER}]+)([।॥!]*\\s*)$")
_NEGATED = re.compile(f"(?<![{_LETTER}])(?:না|নাই|নেই|নি|নয়|নন|নও|নই)(?![{_LETTER}])|নি(?![{_LETTER}])")
_IS = re.compile("আছ(?:ি|ে|েন|ো)?")
