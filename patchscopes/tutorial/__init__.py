"""The tutorial in the browser (`make tutorial`): the five tasks of the paper, each method beside its Patchscope.

A click walks through it like this: Streamlit runs `app` anew; `bar` draws the inputs that all pages share and gives
them as one `state.Choice`; `models` gives the model, which loads in the background; the page, one module of `pages`
each, calls the library through `work`, which computes one thing at a time, shows how far it is and keeps what it found;
and `showing` draws a result file's document as picture, table and downloads. `methods` draws what a method is.

Nothing is computed here that a function of the library does not do. Nothing heavy is imported before it is used: the
first page is drawn before torch is there.
"""
