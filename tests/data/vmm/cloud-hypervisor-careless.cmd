cloud-hypervisor --api-socket path=/tmp/ch.sock --firmware /srv/fw --seccomp false --gdb path=/tmp/gdb.sock \
  --memory size=1G,mergeable=on,shared=on --cpus 4 --disk path=/srv/disk.qcow2,backing_files=on \
  --fs tag=home,socket=/tmp/fs.sock --device path=/sys/bus/pci/devices/0000:3b:00.0 --serial tty
