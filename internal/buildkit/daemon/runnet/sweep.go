package runnet

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Sweep removes every network and firewall rule of the provider with that ID. The provider must not
// be in use.
func Sweep(id string) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	links, err := listLinks(h)
	if err != nil {
		return fmt.Errorf("links: %w", err)
	}
	for _, l := range links {
		name := l.Attrs().Name
		if !strings.HasPrefix(name, linkPrefix+id+"-") && !strings.HasPrefix(name, portPrefix+id) {
			continue
		}
		if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	if err := removeFirewall(id); err != nil {
		return err
	}
	return (&foreignFirewall{id: id}).close()
}

// removeFirewall deletes the provider's table if there is one.
func removeFirewall(id string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	// Adding first makes the deletion succeed in either case, in one transaction.
	t := c.AddTable(&nftables.Table{Name: tableName(id), Family: nftables.TableFamilyINet})
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}
