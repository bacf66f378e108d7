"""Metrics of cells' responses: free functions on tensors, ``y (..., T)`` to ``(...)``."""

from lstm_monitor.metrics.activity import autocorrelation_time as autocorrelation_time
from lstm_monitor.metrics.catalog import CATALOG as CATALOG
from lstm_monitor.metrics.catalog import MetricSpec as MetricSpec
from lstm_monitor.metrics.gates import saturation as saturation
from lstm_monitor.metrics.gates import tau_f as tau_f
from lstm_monitor.metrics.measuring import measure as measure
from lstm_monitor.metrics.sine import amplitude as amplitude
from lstm_monitor.metrics.sine import correlation as correlation
from lstm_monitor.metrics.sine import cutoff_frequency as cutoff_frequency
from lstm_monitor.metrics.sine import dominant_frequency as dominant_frequency
from lstm_monitor.metrics.sine import harmonic_distortion as harmonic_distortion
from lstm_monitor.metrics.sine import phase_lag as phase_lag
from lstm_monitor.metrics.step import delta_response as delta_response
from lstm_monitor.metrics.step import final_response as final_response
from lstm_monitor.metrics.step import initial_response as initial_response
from lstm_monitor.metrics.step import overshoot as overshoot
from lstm_monitor.metrics.step import peak_response as peak_response
from lstm_monitor.metrics.step import peak_time as peak_time
from lstm_monitor.metrics.step import rise_time as rise_time
from lstm_monitor.metrics.step import settling_time as settling_time
from lstm_monitor.metrics.step import step_reason as step_reason
