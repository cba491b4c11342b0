"""Computing for the pages: once, in turns, with a way to stop."""

import threading
import time

import pytest
from streamlit.testing.v1 import AppTest

from patchscopes.results import hold_lock
from patchscopes.tutorial import work


@pytest.fixture(autouse=True)
def nothing_is_kept():
    work.forget()
    yield
    work.forget()


def make_app(script):
    return AppTest.from_function(script, default_timeout=30)


def test_what_was_computed_is_kept_for_all_readers():
    def page():
        import streamlit as st

        from patchscopes.tutorial import work

        st.session_state["calls"] = calls = []
        st.write(str(work.run("Adding", (1, 2), lambda progress: calls.append(1) or 3)))

    first, second = make_app(page).run(), make_app(page).run()
    assert [app.markdown[0].value for app in (first, second)] == ["3", "3"]
    assert [len(app.session_state["calls"]) for app in (first, second)] == [1, 0]


def test_a_mistake_is_told_where_the_result_would_be():
    def page():
        import streamlit as st

        from patchscopes.errors import PatchscopesError
        from patchscopes.tutorial import work

        def fail(progress):
            raise PatchscopesError("give *one* of them")

        st.write(str(work.run("Adding", 0, fail)))

    app = make_app(page).run()
    assert not app.exception
    assert app.error[0].value == r"give \*one\* of them"
    assert app.markdown[-1].value == "None"


def test_on_request_waits_for_the_click_and_is_then_kept():
    def page():
        import streamlit as st

        from patchscopes.tutorial import work

        st.write(str(work.run_on_request("Fit it", "x", lambda progress: sum(progress([1, 2])), takes="a minute")))

    app = make_app(page).run()
    assert app.markdown[0].value == "None"
    assert app.button[0].label == "Fit it (a minute)"
    app.button[0].click().run()
    assert app.markdown[-1].value == "3"
    app.run()
    assert app.markdown[0].value == "3"
    assert not app.button


def test_what_the_reader_stopped_begins_again_on_request():
    def page():
        import streamlit as st

        from patchscopes.tutorial import work

        st.write(str(work.run("Adding", "y", lambda progress: 5)))

    app = make_app(page)
    app.session_state["stopped"] = {("Adding", "y")}
    app.run()
    assert app.markdown[0].value == "None"
    app.button[0].click().run()
    assert app.markdown[0].value == "5"


def test_turns_are_taken_in_order_and_between_the_steps_of_a_long_computation():
    turns, done = work._Turns(), []

    def take_long():
        with turns.take(lambda: None):
            is_running.set()
            deadline = time.monotonic() + 10
            while "short" not in done and time.monotonic() < deadline:
                turns.let_others(lambda: None)
                time.sleep(0.005)
            done.append("long")

    def take_short():
        with turns.take(lambda: None):
            done.append("short")

    is_running = threading.Event()
    threads = [threading.Thread(target=target) for target in (take_long, take_short)]
    threads[0].start()
    is_running.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert done == ["short", "long"]


def test_a_turn_that_is_broken_off_is_given_on():
    turns = work._Turns()
    with pytest.raises(KeyboardInterrupt), turns.take(lambda: None):
        raise KeyboardInterrupt
    # Also by one that waits.
    told = []

    def give_up():
        told.append(1)
        raise SystemExit

    def wait():
        with pytest.raises(SystemExit), turns.take(give_up):
            pass

    with turns.take(lambda: None):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join()
    assert told
    with turns.take(lambda: None):
        pass


def test_what_is_used_longest_ago_is_let_go_first(monkeypatch):
    monkeypatch.setattr(work, "N_KEPT", 2)
    work._keep(("a", 0), 1)
    work._keep(("b", 0), 2)
    assert work._look_up(("a", 0)) == (True, 1)
    work._keep(("c", 0), 3)
    assert [work._look_up((name, 0))[0] for name in "abc"] == [True, False, True]


def test_what_holds_a_lock_while_others_compute_is_asked_for_by_two_and_done_once(tmp_path):
    done, given = [], []

    def learn(progress):
        with hold_lock(tmp_path / "lens"):
            for _ in progress(range(40)):
                time.sleep(0.01)
            done.append(1)
        return "learned"

    def ask():
        given.append(work.run("Learning", "lens", learn))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert given == ["learned", "learned"]
    assert len(done) == 1


def test_a_request_that_was_stopped_is_asked_for_again_with_one_click():
    def page():
        import streamlit as st

        from patchscopes.tutorial import work

        st.write(str(work.run_on_request("Fit it", "z", lambda progress: 7, takes="a minute")))

    app = make_app(page)
    app.session_state["stopped"] = {("Fit it", "z")}
    app.run()
    app.button[0].click().run()
    assert app.markdown[-1].value == "7"
