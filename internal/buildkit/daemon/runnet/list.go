package runnet

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// The kernel's lists may change while they are read; it says so, and they are read again.
const listAttempts = 20

func listRoutes(h *netlink.Handle) ([]netlink.Route, error) {
	return list(func() ([]netlink.Route, error) { return h.RouteList(nil, netlink.FAMILY_V4) })
}

func listLinks(h *netlink.Handle) ([]netlink.Link, error) { return list(h.LinkList) }

func list[T any](read func() ([]T, error)) (all []T, err error) {
	for range listAttempts {
		all, err = read()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
