"""Checks that a method keeps the rules of the field's training loops, for its author's tests.

`check_method(Method)` runs every check and raises one error with all that failed; `checks_for(Method)` is the list, one
check per rule, which pytest parametrizes through `parametrize_with_checks`. Nothing here needs pytest but the latter.
"""

from modbalance.testing._checks import Check as Check
from modbalance.testing._checks import check_method as check_method
from modbalance.testing._checks import checks_for as checks_for
from modbalance.testing._checks import parametrize_with_checks as parametrize_with_checks
from modbalance.testing._checks import rules as rules
from modbalance.testing._models import SharedHeadModel as SharedHeadModel
from modbalance.testing._models import SmallModel as SmallModel
from modbalance.testing._report import ConformanceError as ConformanceError
from modbalance.testing._report import RuleError as RuleError

__all__ = [
    "Check",
    "ConformanceError",
    "RuleError",
    "SharedHeadModel",
    "SmallModel",
    "check_method",
    "checks_for",
    "parametrize_with_checks",
    "rules",
]
