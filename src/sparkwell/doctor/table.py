"""The answer as tables in a terminal: worst first, with a legend."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparkwell.doctor.advice import Needs, needs
from sparkwell.doctor.asked import Asked
from sparkwell.doctor.examine import Examined, decided
from sparkwell.doctor.gates import Gate
from sparkwell.doctor.images import Level
from sparkwell.doctor.own import Compiled
from sparkwell.doctor.report import OTHER_FILE, SIBLING, Row, place_of, rows, running
from sparkwell.doctor.rules import Verdict
from sparkwell.doctor.verdict import MARKS

STYLES = {
    Verdict.NATIVE: "green",
    Verdict.OLDER: "green",
    Verdict.JIT: "yellow",
    Verdict.LINK: "yellow",
    Verdict.UNKNOWN: "magenta",
    Verdict.STUB: "red",
    Verdict.REFUSED: "red",
}
MEANINGS = {
    Verdict.NATIVE: "machine code for this GPU or its family",
    Verdict.OLDER: "machine code for an older minor of the same major, which runs unchanged",
    Verdict.JIT: "the driver compiles PTX when the kernel is first loaded",
    Verdict.LINK: "the driver links objects when the library is loaded",
    Verdict.UNKNOWN: "not established, or not readable",
    Verdict.STUB: "loads, and its body does nothing",
    Verdict.REFUSED: "nothing in it loads on this GPU",
}
INSTEAD = {SIBLING: "a sibling runs instead", OTHER_FILE: "runs from another file"}
NAMES = 3  # families named in a row
NAME_SHOWN = 64  # characters of each
ROWS = 12  # of a table without --why
GATES = 5  # without --why


def show(
    found: Sequence[Examined], gpus: Sequence[Asked], level: Level, console: Console, why: bool
) -> None:
    """One block for each input and GPU, then the legend of the words that were used."""
    used: set[Verdict] = set()
    marks: set[str] = set()
    if sum(len(one.gpus) for one in found) > 1:
        show_overview(found, gpus, console)
    for one in found:
        for gpu in one.gpus:
            made = rows(one, gpu) if why else _brief(rows(one, gpu))
            used |= {row.verdict for row in made}
            marks |= {mark for row in made for mark, _ in row.marks}
            _block(one, gpu, made, console, why)
        _aside(one, console, why)
    _legend(used, marks, level, console)


def _block(found: Examined, gpu: Asked, made: list[Row], console: Console, why: bool) -> None:
    run, total, worst = running(found, gpu)
    host = f", {gpu.host} host" if gpu.host else ""
    console.print(Text(f"{found.name} on {gpu.title} ({gpu.target.name}{host})", style="bold"))
    if not found.files:
        console.print(Text("  no library with GPU code in it"))
    else:
        style = STYLES[worst] if worst else "green"
        console.print(Text(f"  {_summary(run, total, worst)}", style=style))
    if made:
        console.print(_table(made if why else made[:ROWS], why))
        if len(made) > ROWS and not why:
            console.print(Text(f"  and {len(made) - ROWS} better ones; --why shows all"))
    need = needs(
        kernel
        for looked in found.files
        for verdicts in looked.verdicts
        if verdicts.gpu == gpu
        for kernel in verdicts.kernels
    )
    if words := needs_in_words(need):
        console.print(Text(f"  needs {words}"))
    _gates(found, gpu, console, why)


def _brief(made: Sequence[Row]) -> list[Row]:
    """Rows whose kernels have replacements as one for each verdict, with the commonest reason."""
    kept = [row for row in made if row.instead is None]
    groups: dict[tuple[Verdict, str], list[Row]] = {}
    for row in made:
        if row.instead is not None:
            groups.setdefault((row.verdict, row.instead), []).append(row)
    for group in groups.values():
        first = max(group, key=lambda row: row.kernels)
        alike = f" (and {len(group) - 1} like it)" if len(group) > 1 else ""
        kept.append(
            replace(
                first,
                reason=first.reason + alike,
                kernels=sum(row.kernels for row in group),
                names=tuple(dict.fromkeys(name for row in group for name in row.names)),
                places=tuple(dict.fromkeys(place for row in group for place in row.places)),
                marks=tuple(sorted(_added(group).items())),
            )
        )
    return sorted(kept, key=lambda row: row.order)


def _added(group: Sequence[Row]) -> Counter[str]:
    """Marks of several rows."""
    marks: Counter[str] = Counter()
    for row in group:
        marks.update(dict(row.marks))
    return marks


def _summary(run: int, total: int, worst: Verdict | None) -> str:
    if worst is None or worst.runs:
        lost = f"; the other {total - run} have replacements" if run < total else ""
        return f"every kernel family runs: {run} of {total} kernels{lost}"
    if run == 0:
        return f"nothing runs: 0 of {total} kernels"
    return f"{run} of {total} kernels run; some families do not"


def show_overview(found: Sequence[Examined], gpus: Sequence[Asked], console: Console) -> None:
    """Inputs down, the GPUs that were asked about across."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("kernels that run", overflow="fold")
    for gpu in gpus:
        table.add_column(Text(gpu.title), justify="right")
    names = dict.fromkeys(short_name(one) for one in found)
    for name in names:
        cells = []
        for gpu in gpus:
            of_gpu = (one for one in found if short_name(one) == name and gpu in one.gpus)
            one = next(of_gpu, None)
            cells.append(_share(*running(one, gpu)) if one and one.files else Text("-"))
        table.add_row(Text(name), *cells)
    console.print(table)
    console.print()


def _share(run: int, total: int, worst: Verdict | None) -> Text:
    """ "49 of 50, stub": the worst verdict of a family, unless its machine code runs."""
    fine = worst in (None, Verdict.NATIVE, Verdict.OLDER)
    words = f"{run} of {total}" + ("" if fine or worst is None else f", {worst.value}")
    return Text(words, style=STYLES[worst] if worst else "green")


def short_name(found: Examined) -> str:
    """A wheel by name and version: its tags differ from host to host."""
    parts = found.name.split("-")
    return " ".join(parts[:2]) if found.kind == "wheel" and len(parts) >= 5 else found.name


def needs_in_words(need: Needs) -> str:
    """ "driver 525 or newer (code by CUDA 12.8), a driver for CUDA 12.8 to compile the PTX"."""
    words = []
    if need.driver:
        made = need.toolkits[-1]
        words.append(f"driver {need.driver} or newer (newest code is by CUDA {made})")
    if need.cuda:
        release = ".".join(map(str, need.cuda))
        words.append(f"a driver for CUDA {release} or newer to compile the PTX")
    return ", ".join(words)


def _table(made: Sequence[Row], why: bool) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=True, show_edge=False)
    table.add_column("verdict", no_wrap=True)
    table.add_column("kernels", justify="right", no_wrap=True)
    table.add_column("families", overflow="fold", ratio=4)
    table.add_column("why, and what to do", overflow="fold", ratio=5)
    files = {place for row in made for place in row.places}
    for row in made:
        reason = Text(row.reason + (f"; {INSTEAD[row.instead]}" if row.instead else ""))
        marks = ", ".join(f"{mark}: {count}" for mark, count in row.marks)
        reason.append(f" [{marks}]" if marks else "", style="magenta")
        reason.append(f"\n-> {row.do}" if row.do else "", style="dim")
        which = Text(_names(row.names, why))
        if len(files) > 1:
            places = row.places if why else _without_folders(row.places)
            which.append(f"\nin {_names(places, why)}", style="dim")
        style = "dim" if row.instead else STYLES[row.verdict]
        table.add_row(Text(row.verdict.value, style=style), str(row.kernels), which, reason)
    return table


def _without_folders(places: Sequence[str]) -> list[str]:
    """Names of files, with their folder where two are called the same."""
    last = [place.rsplit("/", 1)[-1] for place in places]
    return [
        name if last.count(name) == 1 else "/".join(place.split("/")[-2:])
        for name, place in zip(last, places, strict=True)
    ]


def _names(names: Sequence[str], why: bool) -> str:
    shown = names if why else [_shortened(name) for name in names[:NAMES]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _shortened(name: str) -> str:
    """A long name without its middle."""
    half = NAME_SHOWN // 2
    return name if len(name) <= NAME_SHOWN else f"{name[:half]}...{name[-half:]}"


def _gates(found: Examined, gpu: Asked, console: Console, why: bool) -> None:
    if not found.gates:
        return
    refusing, undecided, passing = decided(found.gates, gpu)
    console.print(
        Text(
            f"  Python code that asks for the GPU's generation: refuses {len(refusing)}, "
            f"undecided {len(undecided)}, passes {passing}"
        )
    )
    for gate in refusing if why else refusing[:GATES]:
        console.print(Text(f"    refuses    {_gate(gate)}"), soft_wrap=True)
    for gate in undecided if why else []:
        console.print(Text(f"    undecided  {_gate(gate)}"), soft_wrap=True)
    if len(refusing) > GATES and not why:
        console.print(Text(f"    and {len(refusing) - GATES} more; --why shows all"))


def _gate(gate: Gate) -> str:
    when = f", when {gate.when}" if gate.when else ""
    says = f': "{gate.message}"' if gate.message else ""
    return f"{gate.file}:{gate.line} {gate.function}: {gate.kind} if {gate.condition}{when}{says}"


def _aside(found: Examined, console: Console, why: bool) -> None:
    """What holds whatever the GPU: compilers at run time, what could not be read."""
    for one in found.evidence:
        hints = f"; written for {', '.join(one.hints)} in places" if one.hints else ""
        places = ", ".join(one.places if why else one.places[:1])
        files = "1 file" if one.count == 1 else f"{one.count} files"
        what = f"{short_name(found)}: {one.says}, {files} such as {places}{hints}"
        console.print(Text(f"  {what}"), soft_wrap=True)
    for tool in found.assemblers:
        newest = f"knows targets up to {tool.newest}" if tool.newest else "names no target"
        console.print(Text(f"  {short_name(found)}: {tool.place} {newest}"), soft_wrap=True)
    for problem in found.problems:
        console.print(Text(f"  cannot be read: {problem}", style="red"), soft_wrap=True)
    for note in found.notes if why else []:
        console.print(Text(f"  left out: {note}"), soft_wrap=True)
    damaged = [
        f"{looked.file.path}: {problem}"
        for looked in found.files
        for problem in (*looked.file.problems, *(p for i in looked.file.images for p in i.problems))
    ]
    for problem in damaged if why else damaged[:GATES]:
        console.print(Text(f"  damaged: {problem}", style="magenta"), soft_wrap=True)


def _legend(used: set[Verdict], marks: set[str], level: Level, console: Console) -> None:
    for verdict in sorted(used, key=lambda one: -one.badness):
        line = Text(f"{verdict.value:<10}", style=STYLES[verdict])
        console.print(line.append(MEANINGS[verdict], style="default"))
    for mark in sorted(marks):
        console.print(Text(f"[{mark}] {MARKS[mark]}"), soft_wrap=True)
    if used and level is Level.HEADERS:
        console.print(Text("only headers were read: kernels without code are not noticed"))


def show_matrix(found: Sequence[Examined], gpus: Sequence[Asked], console: Console) -> None:
    """Inputs down, targets across: how many kernels run, in the colour of the worst family."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("kernels that run on sm_", overflow="fold", min_width=19)
    for gpu in gpus:
        table.add_column(str(gpu.target.sm), justify="right", no_wrap=True, min_width=3)
    for one in found:
        table.add_row(Text(short_name(one), style="bold"))
        places = _without_folders([place_of(looked) for looked in one.files])
        for place, looked in zip(places, one.files, strict=True):
            alone = Examined(one.name, one.kind, one.gpus, (looked,), elsewhere=one.elsewhere)
            cells = [_cell(*running(alone, gpu)) for gpu in gpus]
            table.add_row(Text(place), *cells)
    console.print(table)
    console.print(
        Text(
            "!, red: some family has no kernel that runs; magenta: not established; yellow: the "
            "driver has to compile or link; green: every family runs as machine code"
        )
    )


def _cell(run: int, total: int, worst: Verdict | None) -> Text:
    """ "all", "98%" (the others have replacements), "98%!" (some have none) or "0"."""
    words = "all" if run == total else f"{100 * run // total}%" if run else "0"
    words += "!" if 0 < run < total and worst is not None and not worst.runs else ""
    return Text(words, style=STYLES[worst] if worst else "green")


def show_own(compiled: Sequence[Compiled], console: Console) -> None:
    """Our own ops: compiled kernels, or what failed, for each target."""
    names = list(dict.fromkeys(one.target for one in compiled))
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("our kernels, compiled", overflow="fold")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for op in dict.fromkeys(one.op for one in compiled):
        cells = {one.target: one for one in compiled if one.op == op}
        table.add_row(op, *(_own(cells.get(name)) for name in names))
    console.print(table)


def _own(one: Compiled | None) -> Text:
    if one is None:
        return Text("-")
    if one.failures:
        return Text(f"{one.failures} fail", style="red")
    return Text(str(one.kernels), style="green" if one.kernels else "yellow")
