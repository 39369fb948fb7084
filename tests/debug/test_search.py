"""The search for the smallest failing set, on graphs that are only numbers."""

from __future__ import annotations

import math
import random

import pytest

from trt_native.debug.search import needed_nodes, remove_in_chunks, smallest_failing


class Predicate:
    """Fails where all of some nodes are in a set; counts the questions."""

    def __init__(self, *needed):
        self.needed = frozenset(needed)
        self.asked = 0

    def __call__(self, nodes):
        self.asked += 1
        return self.needed <= nodes


def chain(count):
    return [{i for i in (index - 1, index + 1) if 0 <= i < count} for index in range(count)]


def find(predicate, count, **options):
    return smallest_failing(chain(count), [1.0] * count, predicate, **options)


@pytest.mark.parametrize("position", [0, 1, 777, 1998, 1999])
def test_one_node_takes_a_question_for_each_halving(position):
    fails = Predicate(position)
    found = find(fails, 2000)
    assert found.nodes == {position}
    assert found.is_minimal
    assert fails.asked <= math.ceil(math.log2(2000)) + 1


def test_neighbours_cost_little_more_than_one_node():
    fails = Predicate(1200, 1201, 1202)
    assert find(fails, 2000).nodes == {1200, 1201, 1202}
    assert fails.asked <= math.ceil(math.log2(2000)) + 10


@pytest.mark.parametrize("seed", range(30))
def test_any_set_is_found_exactly(seed):
    rng = random.Random(seed)
    count = rng.randrange(1, 400)
    needed = rng.sample(range(count), min(count, rng.randrange(1, 6)))
    fails = Predicate(*needed)
    found = find(fails, count)
    assert found.nodes == set(needed)
    assert fails.asked <= len(needed) * (math.log2(count) + 8)


def test_a_node_of_much_weight_is_found_first():
    fails, plain = Predicate(900), Predicate(900)
    weights = [0.001] * 2000
    weights[900] = weights[1500] = 1.0
    assert smallest_failing(chain(2000), weights, fails).nodes == {900}
    assert find(plain, 2000).nodes == {900}
    assert fails.asked < plain.asked
    assert fails.asked <= 6


def test_the_most_probable_nodes_are_asked_about_first():
    weights = dict.fromkeys(range(50, 90), 1.0)
    weights.update({61: 500.0, 84: 400.0})
    fails = Predicate(61, 84)
    assert needed_nodes(weights, fails) == {61, 84}
    assert fails.asked <= 4


@pytest.mark.parametrize("seed", range(10))
def test_any_of_some_nodes_are_found_exactly(seed):
    rng = random.Random(seed)
    weights = {node: rng.random() + 0.01 for node in rng.sample(range(1000), 60)}
    needed = rng.sample(sorted(weights), 3)
    assert needed_nodes(weights, Predicate(*needed)) == set(needed)


def test_a_long_search_stops_with_a_set_that_fails():
    fails = Predicate(*range(100, 160))
    found = find(fails, 400, most=8)
    assert not found.is_minimal
    assert fails(found.nodes)
    assert len(found.nodes) < 400


@pytest.mark.parametrize("seed", range(20))
def test_the_answer_fails_even_where_failures_do_not_stay(seed):
    rng = random.Random(seed)
    count = 60
    answers = {frozenset(range(count)): True}

    def fails(nodes):
        return answers.setdefault(nodes, rng.random() < 0.4)

    assert fails(find(fails, count).nodes)


def test_chunks_remove_all_that_is_not_needed():
    fails = Predicate(3, 40, 41)
    everything = frozenset(range(64))
    removed = remove_in_chunks(sorted(everything), lambda some: fails(everything - some))
    assert removed == everything - {3, 40, 41}
    assert fails.asked < 64
    assert remove_in_chunks([], lambda some: True) == frozenset()
