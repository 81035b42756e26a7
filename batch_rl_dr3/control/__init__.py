"""Offline continuous control on TF-Agents: CQL and BRAC, with DR3.

TF-Agents needs TensorFlow's v2 behaviour, which Dopamine switches off for the
whole process. A process does one or the other: nothing here imports Dopamine.
"""
