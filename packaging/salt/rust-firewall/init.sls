# The firewall VM, beside the old one. In dom0: qubesctl state.sls rust-firewall
#
# Pillar, all optional: rust-firewall:name, rust-firewall:netvm.
# What the VM needs is known to rust-firewall-dom0 alone; Qubes' own qvm.vm state would repeat it here.
{% set pillar = salt['pillar.get']('rust-firewall', {}) %}
{% set name = pillar.get('name', 'rust-firewall') %}

rust-firewall-vm:
  cmd.run:
    - name: rust-firewall-dom0 --name {{ name }} --netvm {{ pillar.get('netvm', 'sys-net') }} create
    - unless: qvm-check --quiet {{ name }}
