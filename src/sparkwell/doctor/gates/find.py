"""Where Python code refuses a GPU: a raise, an assert, an answer of no, a list of supported ones.

A statement counts where the nearest condition that leads to it asks about the GPU: the test of an
`if` it stands in, or of one before it that always leaves.
"""

import ast
import re
import warnings
from collections import ChainMap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sparkwell.doctor.gates.evaluate import Evaluator, Scope, TooLong, all_of, call_name
from sparkwell.doctor.gates.vocabulary import (
    DECORATORS,
    LISTS,
    MAJOR_LISTS,
    OTHER,
    UNKNOWN,
    Answer,
)
from sparkwell.hardware import TARGETS, Target

MOST_SHOWN = 160  # characters of a condition or a message
_ASKS_NO = re.compile(r"(?i)^_?(is|can|has|use|check|supports?|validate|enable)_|support|avail")
_SOMETHING_ELSE = ast.Constant(None)  # a loop, a handler, a case: no question about the GPU
_WORTH_PARSING = re.compile(
    rb"(?i)capab|arch|sm_?\d|sm_version|\bcc\b|major|hopper|blackwell|ampere"
)
_MOST_CONDITIONS = 64  # that are kept on the way to a statement
_LISTING = re.compile(
    rb"(?i)supported_(?:compute|major|cap|arch|sm|cc)|requires?_(?:compute|cap|arch|sm)"
)


@dataclass(frozen=True)
class Condition:
    """A test that must hold, or not hold, for a statement to be reached."""

    test: ast.expr
    negated: bool
    about: bool  # whether it asks about the GPU

    def text(self) -> str:
        """As the source has it."""
        words = _short(ast.unparse(self.test))
        return f"not ({words})" if self.negated else words


@dataclass(frozen=True)
class Gate:
    """One place that may refuse a GPU.

    kind: raise, assert, answer (returns False), decorator or list
    condition: what the GPU is asked; when: what else must hold, "" nothing
    message: what the package says; "" nothing
    """

    file: str
    line: int
    function: str
    kind: str
    condition: str
    when: str
    message: str
    conditions: tuple[Condition, ...] = field(repr=False, default=())
    scope: Scope = field(repr=False, default_factory=dict)
    listed: tuple[tuple[ast.expr, bool], ...] = field(repr=False, default=())

    def refuses(self, gpu: Target) -> Answer:
        """True: it refuses `gpu`; False: it does not; UNKNOWN: not decided here."""
        try:
            if self.listed:
                answers = [_listed(node, majors, gpu, self.scope) for node, majors in self.listed]
                return all_of(answers)
            seen = Evaluator(gpu, self.scope)
            found = all_of([seen.holds(c.test, c.negated) for c in self.conditions])
        except (RecursionError, TooLong, ValueError, ArithmeticError):
            return UNKNOWN
        return UNKNOWN if found is OTHER else found


def _listed(node: ast.expr, majors: bool, gpu: Target, scope: Scope) -> Answer:
    found = Evaluator(gpu, scope).value(node)
    numbers = [_number_of(one) for one in found] if isinstance(found, tuple) else [None]
    if None in numbers:
        return UNKNOWN
    return (gpu.major if majors else gpu.sm) not in numbers


def _number_of(found: object) -> int | None:
    """121 from 121 or (12, 1); None where it is something else."""
    if isinstance(found, tuple) and len(found) == 2:
        major, minor = found
        return major * 10 + minor if type(major) is int and type(minor) is int else None
    return found if type(found) is int else None


def find_gates(source: bytes, file: str) -> tuple[list[Gate], str]:
    """The gates of one Python file, in order, and why it could not be read ("": it could)."""
    if not _WORTH_PARSING.search(source):
        return [], ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        lists = bool(_LISTING.search(source))
        return list(_Finder(file, lists).module(tree)), ""
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return [], f"{file}: not understood as Python: {_short(str(error) or type(error).__name__)}"


class _Finder:
    """Walks one file with the conditions that lead to each statement."""

    def __init__(self, file: str, has_lists: bool) -> None:
        self.file, self.has_lists, self.names = file, has_lists, list[str]()

    def module(self, tree: ast.Module) -> Iterator[Gate]:
        yield from self.block(tree.body, (), _assigned(tree.body, {}, ()))

    def block(
        self, body: Sequence[ast.stmt], conditions: tuple[Condition, ...], scope: Scope
    ) -> Iterator[Gate]:
        """Statements one after the other; an `if` that serves some and leaves adds its opposite."""
        for statement in body:
            yield from self.statement(statement, conditions, scope)
            for test in _served(statement):
                conditions = _and(conditions, test, True, scope)

    def statement(
        self, node: ast.stmt, conditions: tuple[Condition, ...], scope: Scope
    ) -> Iterator[Gate]:
        """Gates in one statement."""
        if self.has_lists:
            yield from self.lists(node, scope)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self.names.append(node.name)
            yield from self.block(node.body, (), _assigned(node.body, scope, _arguments(node)))
            self.names.pop()
        elif isinstance(node, ast.If):
            yield from self.block(node.body, _and(conditions, node.test, False, scope), scope)
            yield from self.block(node.orelse, _and(conditions, node.test, True, scope), scope)
        elif isinstance(node, ast.Assert):
            message = _text(node.msg) if node.msg else ""
            reached = _and(conditions, node.test, True, scope)
            yield from self.gate(node, "assert", reached, scope, message)
        elif isinstance(node, ast.Raise):
            yield from self.gate(node, "raise", conditions, scope, _text(node))
        elif isinstance(node, ast.Return):
            no = isinstance(node.value, ast.Constant) and node.value.value is False
            if no and self.names and _ASKS_NO.search(self.names[-1]):
                yield from self.gate(node, "answer", conditions, scope, "")
        else:
            if isinstance(node, ast.For | ast.AsyncFor | ast.While):
                conditions = _and(conditions, _SOMETHING_ELSE, False, scope)
            for part in ("body", "orelse", "finalbody"):
                below = getattr(node, part, [])
                yield from self.block(below, conditions, scope)
            for handler in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
                inside = _and(conditions, _SOMETHING_ELSE, False, scope)
                yield from self.block(handler.body, inside, scope)

    def gate(
        self,
        node: ast.stmt,
        kind: str,
        conditions: tuple[Condition, ...],
        scope: Scope,
        message: str,
    ) -> Iterator[Gate]:
        """A gate, if the nearest of its conditions is about the GPU."""
        if not conditions or not conditions[-1].about:
            return
        asked = tuple(one for one in conditions if one.about)
        told = [one for one in conditions if one.test is not _SOMETHING_ELSE]
        others = [one.text() for one in told if not one.about]
        yield Gate(
            self.file,
            node.lineno,
            ".".join(self.names) or "(module)",
            kind,
            _short(" and ".join(one.text() for one in asked[-3:])),
            " and ".join(others[-2:]),
            message,
            asked,
            scope,
        )

    def lists(self, node: ast.stmt, scope: Scope) -> Iterator[Gate]:
        """Decorators, arguments and attributes that list capabilities."""
        found: list[tuple[str, ast.expr, bool, str]] = []
        for decorator in getattr(node, "decorator_list", []):
            if not isinstance(decorator, ast.Call) or not decorator.args:
                continue
            if DECORATORS.match(call_name(decorator)):
                found.append(("decorator", decorator.args[0], False, getattr(node, "name", "")))
        for expression in _expressions(node):
            for keyword in (n for n in ast.walk(expression) if isinstance(n, ast.keyword)):
                if MAJOR_LISTS.match(keyword.arg or "") or LISTS.match(keyword.arg or ""):
                    majors = bool(MAJOR_LISTS.match(keyword.arg or ""))
                    found.append(("list", keyword.value, majors, ""))
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            names = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (n.id for n in names if isinstance(n, ast.Name)):
                if MAJOR_LISTS.match(name) or (LISTS.match(name) and self.names):
                    found.append(("list", node.value, bool(MAJOR_LISTS.match(name)), ""))
        for kind, value, majors, name in found:
            if isinstance(value, ast.List | ast.Tuple | ast.Set | ast.Name) and not _texts(value):
                where = ".".join([*self.names, *([name] if name else [])]) or "(module)"
                text = f"{'major' if majors else 'capability'} in {_short(ast.unparse(value))}"
                yield Gate(
                    self.file, node.lineno, where, kind, text, "", "",
                    scope=scope, listed=((value, majors),),
                )  # fmt: skip


# ---------------------------------------------------------------- scopes


def _assigned(body: Sequence[ast.stmt], outer: Scope, arguments: Sequence[str]) -> Scope:
    """What each name of a block stands for; None where that is an argument or several things."""
    found: dict[str, ast.expr | None] = dict.fromkeys(arguments)
    own = set(arguments)
    for node in _statements(body):
        pairs: list[tuple[ast.expr, ast.expr | None]] = []
        if isinstance(node, ast.Assign):
            pairs = [(name, node.value) for name in node.targets]
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            pairs = [(node.target, node.value)]
        elif isinstance(node, ast.AugAssign | ast.For | ast.AsyncFor):
            pairs = [(node.target, None)]
        for name, value in pairs:
            for one, part in _unpacked(name, value):
                found[one] = None if one in own else part
                own.add(one)
    beyond = outer.maps if isinstance(outer, ChainMap) else []
    return ChainMap(found, *beyond)


def _unpacked(name: ast.expr, value: ast.expr | None) -> Iterator[tuple[str, ast.expr | None]]:
    """(name, expression) of an assignment; `a, b = f()` gives f()[0] and f()[1]."""
    if isinstance(name, ast.Name):
        yield name.id, value
    elif isinstance(name, ast.Tuple | ast.List):
        for index, part in enumerate(name.elts):
            if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(name.elts):
                yield from _unpacked(part, value.elts[index])
            else:
                item = value and ast.Subscript(value, ast.Constant(index), ast.Load())
                yield from _unpacked(part, item)


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a block and of what it nests, but functions and classes."""
    for node in body:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for part in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(node, part, []))
        for handler in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
            yield from _statements(handler.body)


def _arguments(node: ast.stmt) -> list[str]:
    """Names of a function's arguments, which hide what is outside."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    given = node.args
    return [one.arg for one in [*given.posonlyargs, *given.args, *given.kwonlyargs]]


# ---------------------------------------------------------------- small questions


def _and(
    conditions: tuple[Condition, ...], test: ast.expr, negated: bool, scope: Scope
) -> tuple[Condition, ...]:
    """The conditions with one more."""
    one = Condition(test, negated, _about(test, scope))
    return (*conditions[1 - _MOST_CONDITIONS :], one)


def _about(test: ast.expr, scope: Scope) -> bool:
    """Whether a test asks about the GPU: GPUs differ in it, or nobody can decide it."""
    try:
        first = Evaluator(TARGETS[0], scope).holds(test)
        if first is OTHER:  # what is about something else is so for every GPU
            return False
        answers = {first, *(Evaluator(gpu, scope).holds(test) for gpu in TARGETS[1:])}
    except (RecursionError, TooLong, ArithmeticError):
        return False
    return UNKNOWN in answers or len(answers) > 1


def _served(statement: ast.stmt) -> Iterator[ast.expr]:
    """Tests of an `if` and its `elif`s whose GPUs are served there and go no further."""
    while isinstance(statement, ast.If):
        if _serves(statement.body):
            yield statement.test
        elif not (statement.body and isinstance(statement.body[-1], ast.Raise | ast.Return)):
            return  # it goes on below, whatever the tests after it say
        if len(statement.orelse) != 1:
            return
        statement = statement.orelse[0]


def _serves(body: Sequence[ast.stmt]) -> bool:
    """Whether a block ends by leaving with something other than a refusal."""
    last = body[-1] if body else None
    if isinstance(last, ast.Return):
        return not (isinstance(last.value, ast.Constant) and last.value.value is False)
    return isinstance(last, ast.Continue | ast.Break)


def _texts(value: ast.expr) -> bool:
    """Whether a list holds texts: another maker's names for its devices."""
    parts = getattr(value, "elts", [])
    return any(isinstance(p, ast.Constant) and isinstance(p.value, str) for p in parts)


def _expressions(node: ast.stmt) -> Iterator[ast.expr]:
    """Expressions of one statement, not of the statements in it."""
    for _, value in ast.iter_fields(node):
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ast.expr):
                yield part


def _text(node: ast.AST) -> str:
    """The longest text in a raise or an assert's message, on one line."""
    texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
    words = [" ".join(text.split()) for text in texts if isinstance(text, str)]
    return _short(max(words, key=len, default=""))


def _short(text: str) -> str:
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * MOST_SHOWN])
    return line if len(line) <= MOST_SHOWN else line[: MOST_SHOWN - 3] + "..."
