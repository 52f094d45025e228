# Runs in the virtual machine.
failed=0
check() { # NAME COMMAND...: ok where the command succeeds
	name=$1
	shift
	if "$@"; then echo "ok $name"; else echo "FAIL $name"; failed=1; fi
}
probe_lists_vivid() {
	visaged probe --json >/run/probe.json && grep -q '"driver": "vivid"' /run/probe.json &&
		grep -q '"readable": true' /run/probe.json && visaged probe | grep -q 'chosen for 640x480'
}
probe_refuses_the_output() {
	visaged probe /dev/video1 >/run/out 2>/run/err
	[ $? = 1 ] && [ ! -s /run/out ] && grep -q 'not a camera' /run/err
}
check probe_lists_vivid probe_lists_vivid
check probe_refuses_the_output probe_refuses_the_output
vm_capture vivid /dev/video0 /dev/video1 || failed=1
exit $failed
