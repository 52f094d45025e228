# Runs in the virtual machine.
mkdir -p /etc /var
ln -s /run /var/run
echo 'root:x:0:0:root:/:/bin/sh' >/etc/passwd
export PATH=/usr/bin:/bin VISAGED=/bin/visaged VISAGED_FLEET=/usr/bin/visaged-fleet IP=/usr/bin/ip TC=/usr/bin/tc
# The processor is emulated, and the machine may have other work.
export TRUE_WITHIN_S=25
sh /usr/bin/check-netem 6
