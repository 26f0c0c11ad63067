"""Micro-batches side by side: in order, without gradients, and nobody else's number of threads changes."""

import threading

import pytest
import torch

from pictish.tokenizer.dynamic import Tokenizer
from pictish.tokenizer.parallel import SideBySide
from tests.tokenizer.conftest import random_pixels, tiny_network


def test_results_come_in_order_and_from_threads_of_one_core_each():
    before = torch.get_num_threads()
    both = threading.Barrier(before, timeout=30)
    side_by_side = SideBySide(torch.device("cpu"))

    def work(number: int) -> tuple[int, int, bool]:
        both.wait()  # every thread takes part
        return number, torch.get_num_threads(), torch.is_inference_mode_enabled()

    numbers = list(range(4 * before))
    assert list(side_by_side.map(work, numbers)) == [(number, 1, True) for number in numbers]
    assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [before], "threads of others keep their setting"


def test_an_error_reaches_the_caller():
    def work(number: int) -> int:
        raise ValueError(f"number {number}")

    with pytest.raises(ValueError, match="number 7"):
        list(SideBySide(torch.device("cpu")).map(work, [7]))


def test_another_number_of_threads_gives_the_same_ids_and_features():
    pixels, before = random_pixels(9, 32), torch.get_num_threads()
    network, results = tiny_network(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            tokenizer = Tokenizer(network, "0123456789ab")
            tokens = tokenizer.tokenize_pixels(pixels, [(32, 32)] * 9)
            results.append((tokens, tokenizer.reconstruct(tokens)))
        finally:
            torch.set_num_threads(before)
    for tokens, features in results[1:]:
        assert tokens == results[0][0]
        assert torch.allclose(features, results[0][1], atol=1e-5)
