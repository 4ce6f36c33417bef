"""What is judged when only some ops are asked for."""

from sparkwell.verify.command import Options, verify_compiled


def test_rows_of_ops_that_were_not_asked_for_are_not_missed() -> None:
    report = verify_compiled(Options(targets=("sm_86",), ops=("topk_select",), jobs=1))
    assert not report.failures, report.failures
    assert {cell.op for cell in report.cells} == {"topk_select"}
