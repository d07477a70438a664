"""The command `rust-firewall` of dom0: looks into the firewall VM and edits rules of the qubes behind it.

Standard library only, Python 3.8 and later (dom0 of Qubes R4.1 has 3.8, R4.2 3.11, R4.3 3.13).

What comes from the firewall VM is less trusted than dom0: `process` bounds its size and time, `answers` its shape, `clean`
its characters, and `screen` cleans once more whatever is printed. Modules, from the bottom: `errors`, `clean`, `process`;
`answers`, `services` (what the firewall says), `rule`, `dom0` (what dom0 says), `naming`; `screen`; `propose`, `checks`
(pure); then one module for each sub-command, and `cli`.
"""

SCHEMA = 1
