"""Documents in, scores and decisions out: the stages that read the web and judge it."""
