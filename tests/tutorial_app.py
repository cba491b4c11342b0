"""Fixtures: pages of the tutorial on tiny models, run by Streamlit's own AppTest."""

from concurrent.futures import Future
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "tutorial.py"
# Seconds that a page may take on tiny models.
TIMEOUT = 60


@pytest.fixture
def serve():
    """Serve models that are there already, by name, in the order given."""
    from patchscopes.tutorial import models, work

    def serve_models(by_name):
        work.forget()
        models.serve(models.ServedModels(names=tuple(by_name)))
        shelf = models._get_shelf()
        for name, model in by_name.items():
            shelf.loading[name] = Future()
            shelf.loading[name].set_result(model)

    yield serve_models
    models._shelf = None
    work.forget()


@pytest.fixture
def open_page(serve, models_by_tokenizer):
    """Open a page of the tutorial on a tiny model (or others by their names), with an address that says more."""
    from streamlit.testing.v1 import AppTest
    from streamlit.util import calc_hash

    def open_it(page="start", by_name=None, **address):
        serve(by_name or {"tiny": models_by_tokenizer["byte_level"]})
        app = AppTest.from_file(SCRIPT, default_timeout=TIMEOUT)
        for name, value in address.items():
            app.query_params[name] = value
        if page != "start":
            # Straight to the page, as a link does.
            app._page_hash = calc_hash(page)
        app.run()
        assert not app.exception, app.exception
        return app

    return open_it


def go_to(app, page):
    """Go on to another page, as a click in the menu does: AppTest itself only knows pages that are files."""
    app._page_hash = next(
        key for key, info in app._registered_pages.items() if info["url_pathname"] == page.removeprefix("start")
    )
    app.run()
    assert not app.exception, app.exception
    return app


@pytest.fixture
def run_code(monkeypatch, capsys):
    """Run a method's code sample with a given model in the place of what it loads; gives what it prints."""

    def run(code, model):
        monkeypatch.setattr("patchscopes.model.loading.load_model", lambda *args, **options: model)
        monkeypatch.setattr("patchscopes.load_model", lambda *args, **options: model, raising=False)
        exec(compile(code, "a code sample", "exec"), {})
        printed = capsys.readouterr().out
        assert printed.strip()
        return printed

    return run
