# The firewall VM in the place of sys-firewall. In dom0: qubesctl state.sls rust-firewall.replace
#
# Pillar, all optional: rust-firewall:name, rust-firewall:netvm, rust-firewall:old, rust-firewall:updatevm.
# With the same name for both, the old VM becomes the firewall.
{% set pillar = salt['pillar.get']('rust-firewall', {}) %}
{% set name = pillar.get('name', 'rust-firewall') %}
{% set old = pillar.get('old', 'sys-firewall') %}
{% set words = '--yes replace --name ' ~ name ~ ' --old ' ~ old %}
{% if 'updatevm' in pillar %}{% set words = words ~ ' --updatevm ' ~ pillar['updatevm'] %}{% endif %}

{% if name != old %}
include:
  - rust-firewall
{% endif %}

rust-firewall-replace:
  cmd.run:
    - name: rust-firewall-dom0 {{ words }}
    - unless: rust-firewall-dom0 {{ words }} --check
{% if name != old %}
    - require:
      - cmd: rust-firewall-vm
{% endif %}
