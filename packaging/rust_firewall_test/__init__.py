"""Tests of the command `rust-firewall`, without dom0: `packaging/test` runs them.

`stand_in` is dom0's programs, `simulated` the firewall VM behind `qrexec-client`, `reference` what rules mean; `world`
is the qubes that the tests and the examples of the documentation see.
"""
