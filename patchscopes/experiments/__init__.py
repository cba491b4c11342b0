"""One module per figure or table of the paper: a model and options in, the content of a result file out.

How data walks through an experiment:

1. `config` holds the options of all of them; it imports nothing heavy, so that scripts can read their options at once.
2. `run(model, ..., config, store, progress)` refuses what does not fit (`checks`) and draws what it measures: positions
   of texts (`sampling`), entities or questions.
3. They are measured in chunks (`chunks`), each of which is kept in `store` when it is finished: an interrupted run goes
   on from there. Measuring is always: `extract_representations` of S, patch them into T, compare what is said.
4. Over all samples the measures become means with intervals, and seconds are summed by step: `results` and `timing`.

Helpers of one experiment carry its name: `multi_hop_patching`, `multi_hop_measures`, `cross_model_prediction`.
"""
