crosvm --log-level debug run --disable-sandbox --seccomp-log-failures --rwroot /srv/debian.qcow2 --rwdisk /srv/disk.img,sparse=false \
  --tap-name tap0 --vhost-net --cid 3 --shared-dir /home:home:type=p9 --gpu backend=virglrenderer --vfio /sys/bus/pci/devices/0000:00:02.0 \
  --gdb 1234 -s /tmp/ -p init=/bin/bash -p password=hunter2 /srv/vmlinux
