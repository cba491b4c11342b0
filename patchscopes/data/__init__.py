"""What is read from files: `texts` to take states from (also from the `hub`; long ones go through `cutting`),
`entities` with descriptions, two-hop `questions`, `relations` with the subjects that have an attribute, `facts`,
prompts that an attribute follows, and `templates` of target prompts.

All go through the one reader in `files`, which says in which row a file is wrong.
"""
