"""The first page, and the bar that all pages share."""


def test_first_page(open_page):
    app = open_page()
    print(app.main)
    assert app.title[0].value == "What is a Patchscope?"
