"""The ground floor of hornbook: what every stage stands on, and no stage's own knowledge.

The floors above (`generators`, `classifiers`, `training`) import this package; it imports none of them.
"""

__version__ = "0.1.0"
