crosvm run --name web --mem size=512 --cpus num-cores=2 --split-irqchip --no-usb --no-balloon --no-i8042 --no-rtc \
  --block path=/srv/rootfs.raw,ro=true,root=true --net tap-name=tap0 --serial type=file,path=/srv/console.log,hardware=virtio-console \
  --socket /run/crosvm/web.sock -p "console=hvc0 quiet" /srv/vmlinux
