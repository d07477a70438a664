# Undoes rust-firewall.replace: every property as it was saved. In dom0: qubesctl state.sls rust-firewall.restore

rust-firewall-restore:
  cmd.run:
    - name: rust-firewall-dom0 restore
    - onlyif: test -e /var/lib/qubes/rust-firewall/replace.json
