from __future__ import annotations

import signal
import threading

import pytest

from u2pl.signals import STOP_SIGNALS, ignore_signals, noticing_signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_first_signal_is_noticed_and_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with noticing_signals() as asked:
        assert not asked()
        signal.raise_signal(number)
        assert asked()
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_second_signal_ends_the_process_as_usual() -> None:
    # a process that was started in the background may ignore SIGINT from the start
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with noticing_signals() as asked:
            assert not asked()
            signal.raise_signal(signal.SIGINT)
            assert asked()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_no_signal_is_taken() -> None:
    answers: list[bool] = []

    def work() -> None:
        with noticing_signals() as asked:
            answers.append(asked())

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
    assert signal.getsignal(signal.SIGINT) is before


def test_ignored_signals_do_not_end_the_process() -> None:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        ignore_signals()
        for number in STOP_SIGNALS:
            signal.raise_signal(number)  # SIGTERM and SIGUSR1 would end the tests
        assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
