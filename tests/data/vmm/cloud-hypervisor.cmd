cloud-hypervisor --api-socket /run/ch/web.sock --kernel /srv/vmlinux --cmdline "console=hvc0 root=/dev/vda ro" \
  --cpus boot=2,nested=off --memory size=512M --disk path=/srv/rootfs.raw,image_type=raw path=/srv/data.raw,readonly=on,image_type=raw \
  --net tap=tap0,mac=12:34:56:78:90:ab --rng src=/dev/urandom --serial null --console file=/srv/console.log --seccomp true --landlock
