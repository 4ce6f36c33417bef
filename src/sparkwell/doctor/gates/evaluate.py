"""Whether a condition holds on a GPU: true, false, unknown, or about something else.

Nothing is executed: the syntax tree is folded with what is known of the GPU.  Conditions about
something else are left out of an `and` or an `or`, so that what is left is what the GPU decides.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from sparkwell.doctor.gates.vocabulary import (
    MAJOR,
    METHODS,
    MINOR,
    OTHER,
    UNKNOWN,
    Answer,
    Capability,
    asks_capability,
    helper,
    is_capability_name,
)
from sparkwell.hardware import Target

Value = Any  # a constant, a tuple of Values, a Capability, UNKNOWN or OTHER
Scope = Mapping[str, ast.expr | None]  # name -> what was last assigned to it; None: several things
_DEEPEST = 40  # names that stand for names
_MOST_STEPS = 5000  # of one condition; names that stand for sums of names could take forever


class TooLong(Exception):
    """A condition that takes more steps than any sensible one."""


_MEMBER = re.compile(r"sm_?(\d{2,3})[af]?")
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class Evaluator:
    """Folds conditions for one GPU in one scope."""

    def __init__(self, gpu: Target, scope: Scope) -> None:
        self.gpu, self.scope, self.depth, self.steps = gpu, scope, 0, 0

    def _step(self) -> None:
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise TooLong

    # ------------------------------------------------------------ conditions

    def holds(self, test: ast.expr, negated: bool = False) -> Answer:
        """Whether `test` (or its opposite) holds, by what the GPU decides of it."""
        self._step()
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return self.holds(test.operand, not negated)
        if isinstance(test, ast.BoolOp):
            every = isinstance(test.op, ast.And) != negated
            parts = [self.holds(part, negated) for part in test.values]
            return all_of(parts) if every else any_of(parts)
        if isinstance(test, ast.Compare) and len(test.ops) > 1:
            links, left = [], test.left
            for op, right in zip(test.ops, test.comparators, strict=True):
                links.append(ast.Compare(left, [op], [right]))
                left = right
            parts = [self.holds(link, negated) for link in links]
            return any_of(parts) if negated else all_of(parts)
        if isinstance(test, ast.Name) and self.scope.get(test.id) is not None:
            assigned = self.scope[test.id]
            if assigned is not None and self.depth < _DEEPEST:
                self.depth += 1
                answer = self.holds(assigned, negated)
                self.depth -= 1
                return answer
        found = self.value(test)
        if isinstance(found, bool):
            return found != negated
        return found if found is UNKNOWN else OTHER  # a capability alone asks whether there is one

    # ------------------------------------------------------------ values

    def value(self, node: ast.expr) -> Value:
        """What an expression is; OTHER where the GPU has no part in it."""
        self._step()
        fold = getattr(self, f"_{type(node).__name__.lower()}", None)
        return fold(node) if fold else OTHER

    def _constant(self, node: ast.Constant) -> Value:
        return node.value

    def _tuple(self, node: ast.Tuple | ast.List | ast.Set) -> Value:
        found = tuple(self.value(part) for part in node.elts)
        if any(part is UNKNOWN or isinstance(part, Capability) for part in found):
            return UNKNOWN
        return OTHER if any(part is OTHER for part in found) else found

    _list = _set = _tuple

    def _dict(self, node: ast.Dict) -> Value:
        return tuple(self.value(key) for key in node.keys if key is not None)

    def _name(self, node: ast.Name) -> Value:
        if node.id in self.scope:
            assigned = self.scope[node.id]
            if assigned is None or self.depth >= _DEEPEST:
                return self._by_name(node.id) if assigned is None else OTHER
            self.depth += 1
            found = self.value(assigned)
            self.depth -= 1
            return self._by_name(node.id) if found is OTHER else found
        return self._by_name(node.id)

    def _by_name(self, name: str) -> Value:
        """A variable that nothing here assigns, by its name alone."""
        low = name.lower()
        if is_capability_name(name):
            return Capability(self.gpu)
        if MAJOR.fullmatch(low):
            return _Part(self.gpu.major)
        if MINOR.fullmatch(low):
            return _Part(self.gpu.sm % 10)
        answer = helper(name, self.gpu)
        return OTHER if answer is None else answer

    def _attribute(self, node: ast.Attribute) -> Value:
        if member := _MEMBER.fullmatch(node.attr):
            return int(member[1])  # Arch.sm_90a of an enumeration
        base = self.value(node.value)
        if isinstance(base, Capability):
            parts = {"major": self.gpu.major, "minor": self.gpu.sm % 10}
            return parts.get(node.attr, OTHER)
        text = ast.unparse(node.value).lower()
        if node.attr in ("major", "minor"):
            device = re.search(r"prop|device|capab|\bcc\b|arch\b|gpu", text)
            if not device or "version" in text:
                return OTHER
            return self.gpu.major if node.attr == "major" else self.gpu.sm % 10
        if "version" in text:
            return OTHER
        if is_capability_name(node.attr):
            return Capability(self.gpu)
        answer = helper(node.attr, self.gpu)
        return OTHER if answer is None else answer

    def _subscript(self, node: ast.Subscript) -> Value:
        base = self.value(node.value)
        if isinstance(base, Capability):
            index = self.value(node.slice)
            return base.pair[index] if index in (0, 1) else UNKNOWN
        return OTHER

    def _call(self, node: ast.Call) -> Value:
        name = call_name(node)
        if name in METHODS:
            wanted = _wanted([self.value(argument) for argument in node.args])
            return METHODS[name](self.gpu.sm, wanted) if wanted else UNKNOWN
        if name == "to_int" and isinstance(node.func, ast.Attribute):
            return self.value(node.func.value)
        if name in ("frozenset", "set", "list") and len(node.args) == 1:
            return self.value(node.args[0])
        if name in ("int", "tuple", "bool", "float", "str") and node.args:
            found = self.value(node.args[0])
            return found if isinstance(found, Capability | _Part) else OTHER
        if asks_capability(name):
            return Capability(self.gpu)
        answer = helper(name, self.gpu)
        return OTHER if answer is None else answer

    def _binop(self, node: ast.BinOp) -> Value:
        left, right = self.value(node.left), self.value(node.right)
        fold = _ARITHMETIC.get(type(node.op))
        if isinstance(left, Capability) and isinstance(node.op, ast.FloorDiv | ast.Mod):
            left = self.gpu.sm  # cc // 10, cc % 10
        if fold and _number(left) and _number(right):
            try:
                found = fold(left, right)
            except (ArithmeticError, ValueError):
                return OTHER
            return found if -10_000 < found < 10_000 else OTHER
        about = (left, right)
        return UNKNOWN if any(x is UNKNOWN or isinstance(x, Capability) for x in about) else OTHER

    def _ifexp(self, node: ast.IfExp) -> Value:
        chosen = self.holds(node.test)
        if isinstance(chosen, bool):
            return self.value(node.body if chosen else node.orelse)
        return chosen

    def _compare(self, node: ast.Compare) -> Value:
        left, right = self.value(node.left), self.value(node.comparators[0])
        return compare(left, type(node.ops[0]), right)

    def _boolop(self, node: ast.BoolOp) -> Value:
        return self.holds(node)

    def _unaryop(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            return self.holds(node)
        found = self.value(node.operand)
        return -found if isinstance(node.op, ast.USub) and _number(found) else OTHER


class _Part(int):
    """The GPU's major or minor, known by its name alone: small numbers are about it."""


def compare(left: Value, op: type[ast.cmpop], right: Value) -> Value:
    """One comparison; OTHER where the GPU has no part in it."""
    if op not in _COMPARE:
        return OTHER  # `is`, `is not`
    if isinstance(right, Capability) and not isinstance(left, Capability):
        flipped = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE}
        if op in (ast.In, ast.NotIn):
            return OTHER
        return compare(right, flipped.get(op, op), left)
    if UNKNOWN in (left, right):
        return UNKNOWN
    if OTHER in (left, right):
        about = isinstance(left, Capability | _Part) or isinstance(right, Capability | _Part)
        return UNKNOWN if about else OTHER
    if isinstance(left, Capability):
        many = isinstance(right, tuple) and op in (ast.In, ast.NotIn)
        shown = _in_form_of(left, right if many else (right,))
        if shown is None:
            return OTHER  # "arch" of a model, a layout or another maker's device
        left = shown
        right = _unsuffixed(right)
    try:
        return bool(_COMPARE[op](left, right))
    except TypeError:
        return OTHER


def _in_form_of(capability: Capability, others: tuple[Value, ...]) -> Value | None:
    """The capability written as the values it is compared with; None: in no way it can be."""
    sm = capability.gpu.sm
    if all(isinstance(x, tuple) and 1 <= len(x) <= 2 for x in others):
        if all(all(_number(part) for part in x) for x in others):
            return capability.pair[: max(len(x) for x in others)] if others else None
        return None
    if all(_number(x) and isinstance(x, float) for x in others):
        return sm / 10
    if all(_number(x) for x in others):
        if all(50 <= x <= 130 for x in others):
            return sm
        if all(500 <= x <= 1309 for x in others):
            return sm * 10
        return capability.gpu.major if all(7 <= x <= 13 for x in others) else None
    if all(isinstance(x, str) for x in others):
        for form in (f"sm_{sm}", f"sm{sm}", f"{sm}", capability.gpu.capability):
            pattern = re.sub(r"\\?\d+", r"\\d{1,3}", re.escape(form)) + "[af]?"
            if all(re.fullmatch(pattern, x) for x in others):
                return form
    return None


def _unsuffixed(found: Value) -> Value:
    """ "sm_90a" as "sm_90": what a package calls a GPU by when it lists code targets."""
    if isinstance(found, tuple):
        return tuple(_unsuffixed(part) for part in found)
    return found.rstrip("af") if isinstance(found, str) else found


def _number(found: Value) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool)


def _wanted(arguments: list[Value]) -> int | None:
    """120 from has_device_capability(120), (12, 0) or 12, 0."""
    if len(arguments) >= 1 and isinstance(arguments[0], tuple):
        arguments = list(arguments[0])
    numbers = [x for x in arguments if isinstance(x, int) and not isinstance(x, bool)]
    if len(numbers) != len(arguments) or not numbers:
        return None
    if len(numbers) == 2 and numbers[0] < 20:
        return numbers[0] * 10 + numbers[1]
    return numbers[0] if numbers[0] >= 50 else None


def call_name(node: ast.Call) -> str:
    """The last name of what is called."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def all_of(parts: list[Answer]) -> Answer:
    """`and` of what the GPU decides."""
    about = [part for part in parts if part is not OTHER]
    if not about:
        return OTHER
    if any(part is False for part in about):
        return False
    return UNKNOWN if UNKNOWN in about else True


def any_of(parts: list[Answer]) -> Answer:
    """`or` of what the GPU decides."""
    about = [part for part in parts if part is not OTHER]
    if not about:
        return OTHER
    if any(part is True for part in about):
        return True
    return UNKNOWN if UNKNOWN in about else False
