"""The free page: nine inputs, two Patchscopes side by side, and an address that says it all."""


def test_page(open_page):
    app = open_page("change_one_thing")
    print(app.title, app._registered_pages, app._finished_page_script_hash)
    print(app.table)
    app.pills(key="changed").set_value(["i*"]).run()
    print(app.error, app.query_params, [t.label for t in app.text_input])
