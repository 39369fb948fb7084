from __future__ import annotations

from trt_native.runtime.graph_cache import GraphCache


class FakeGraph:
    def __init__(self):
        self.closed = False

    def close(self):
        self.closed = True


def test_a_key_is_worth_a_graph_when_it_comes_back():
    graphs = GraphCache(2)
    assert not graphs.seen_before("a")
    assert graphs.seen_before("a")
    graphs.add("a", FakeGraph())
    assert not graphs.seen_before("a"), "a dropped graph is forgotten"


def test_the_graph_not_used_for_longest_goes():
    graphs = GraphCache(2)
    made = {key: FakeGraph() for key in "abc"}
    assert graphs.add("a", made["a"]) is None
    assert graphs.add("b", made["b"]) is None
    assert graphs.find("a") is made["a"]
    assert graphs.add("c", made["c"]) is made["b"]
    assert graphs.find("b") is None
    assert len(graphs) == 2
    graphs.close()
    assert (made["a"].closed, made["c"].closed, len(graphs)) == (True, True, 0)


def test_keys_that_never_come_back_take_no_memory():
    graphs = GraphCache(2)
    for key in range(1000):
        assert not graphs.seen_before(key)
    assert len(graphs._seen) == 8
    assert graphs.seen_before(999)
    assert not graphs.seen_before(0)


def test_no_graphs():
    graphs = GraphCache(0)
    assert not any(graphs.seen_before("a") for _ in range(3))
