"""Where a training step spends its time: torch's profiler, its events in groups."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as recording

from bench.turns import timed

GROUPS = ("matrix products of linear layers", "attention products", "softmax", "norms, elementwise",
          "casts and copies", "embedding", "loss", "optimizer, clipping", "other")


def group_of(name: str) -> str:
    """The group of a profiler event by its name, which is an aten operator or the compiler's fused kernel."""
    fused, has = "fused" in name, lambda *parts: any(part in name for part in parts)
    if has("log_softmax", "nll_loss", "cross_entropy"):
        return "loss"
    if has("softmax"):
        return "softmax"
    if not fused and has("bmm", "scaled_dot_product", "flash_attention"):
        return "attention products"
    if not fused and has("aten::mm", "addmm", "aten::linear", "aten::matmul", "linear_pointwise", "mkl_linear"):
        return "matrix products of linear layers"
    if has("embedding"):
        return "embedding"
    if not fused and has("copy", "aten::to", "aten::clone", "aten::contiguous", "aten::cat", "aten::stack"):
        return "casts and copies"
    return "norms, elementwise" if fused or name.startswith("aten::") else "other"


def profile(learn: Callable, update: Callable, n: int) -> dict:
    """Milliseconds per step by group, and the ten slowest operators. Time outside all operators counts as `other`.

    learn: forward and backward; update: clipping and optimizer; n: the number of steps.
    """
    def once():
        learn()
        with record_function("bench::update"):
            update()

    once()
    with recording(activities=[ProfilerActivity.CPU]) as recorded:
        wall = timed(lambda: [once() for _ in range(n)])
    groups, operators = dict.fromkeys(GROUPS, 0.0), {}
    for event in recorded.events():
        ms, above, group = event.self_cpu_time_total / 1000 / n, event, group_of(event.name)
        while above is not None:
            if above.name == "bench::update":
                group = "optimizer, clipping"
            above = above.cpu_parent
        groups[group] += ms
        operators[event.name] = operators.get(event.name, 0.0) + ms
    total = 1000 * wall / n
    groups["other"] = total - sum(ms for group, ms in groups.items() if group != "other")
    top = sorted(operators.items(), key=lambda item: -item[1])[:10]
    return {"ms": total, "groups": groups, "operators": top}
