# Runs in the virtual machine.
failed=0
mkdir -p /dev/gadget
mount -t gadgetfs none /dev/gadget || failed=1
if [ "$(visaged probe --json | tr -d ' \n')" = '{"cameras":[]}' ]; then
	echo "ok probe_without_a_camera_lists_nothing"
else
	echo "FAIL probe_without_a_camera_lists_nothing"
	failed=1
fi
vm_capture uvc /dev/video0 || failed=1
exit $failed
