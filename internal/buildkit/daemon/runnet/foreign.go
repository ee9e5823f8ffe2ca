package runnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// foreignInterval is how often other firewalls are looked at: Docker may start after the daemon.
const foreignInterval = 30 * time.Second

// legacyTables lists the tables of the old iptables that are loaded.
const legacyTables = "/proc/net/ip_tables_names"

// A foreignFirewall is the iptables filter table of others. Docker and ufw make it drop whatever is
// forwarded for anybody else, and an accepting rule of another table does not overrule that: the
// accepting rules have to be in it.
type foreignFirewall struct {
	id string

	mu      sync.Mutex
	checked time.Time
}

// open makes the foreign firewall accept what comes from and goes to our bridges. Our own rules
// still apply to it.
func (f *foreignFirewall) open(ctx context.Context, log *slog.Logger) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.checked) < foreignInterval {
		return nil
	}
	f.checked = time.Now()
	changed, err := f.openNFT()
	legacy, err2 := f.openLegacy(ctx)
	if changed || legacy {
		log.Info("rules for the networks of builds added to the host's iptables filter table")
	}
	return errors.Join(err, err2)
}

// close removes our rules from the foreign firewall.
func (f *foreignFirewall) close() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	rules, _, err := f.rules(c)
	if err != nil {
		return err
	}
	for _, r := range rules {
		if err := c.DelRule(r); err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
	}
	if len(rules) > 0 {
		if err := c.Flush(); err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
	}
	return f.closeLegacy()
}

// openNFT adds the rules to the table that iptables-nft keeps in nftables, if it has one that drops.
func (f *foreignFirewall) openNFT() (changed bool, err error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	rules, chain, err := f.rules(c)
	if err != nil || chain == nil || len(rules) > 0 {
		return false, err
	}
	if chain.Policy == nil || *chain.Policy != nftables.ChainPolicyDrop {
		return false, nil
	}
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		c.InsertRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: exprs{
			meta(key, 1), equal(f.prefix()), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept},
		}})
	}
	if err := c.Flush(); err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	return true, nil
}

func (f *foreignFirewall) prefix() []byte { return []byte(linkPrefix + f.id + "-") }

// rules returns the forward chain of iptables-nft, nil if there is none, and our rules in it.
func (f *foreignFirewall) rules(c *nftables.Conn) (ours []*nftables.Rule, chain *nftables.Chain, err error) {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, nil, fmt.Errorf("nftables: %w", err)
	}
	i := slices.IndexFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name == "filter" && c.Name == "FORWARD" })
	if i < 0 {
		return nil, nil, nil
	}
	chain = chains[i]
	all, err := c.GetRules(chain.Table, chain)
	if err != nil {
		return nil, nil, fmt.Errorf("nftables: %w", err)
	}
	for _, r := range all {
		if slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
			cmp, ok := e.(*expr.Cmp)
			return ok && bytes.Equal(cmp.Data, f.prefix())
		}) {
			ours = append(ours, r)
		}
	}
	return ours, chain, nil
}

// legacyRules are our rules in the old iptables' own words.
func (f *foreignFirewall) legacyRules() [][]string {
	link := string(f.prefix()) + "+"
	return [][]string{
		{"FORWARD", "-i", link, "-j", "ACCEPT"},
		{"FORWARD", "-o", link, "-j", "ACCEPT"},
	}
}

// openLegacy adds the rules to the old iptables' table, if it is loaded.
func (f *foreignFirewall) openLegacy(ctx context.Context) (changed bool, err error) {
	program, err := legacyProgram()
	if program == "" || err != nil {
		return false, err
	}
	for _, r := range f.legacyRules() {
		if iptables(ctx, program, "-C", r) == nil {
			continue
		}
		if err := iptables(ctx, program, "-I", r); err != nil {
			return false, err
		}
		changed = true
	}
	return changed, nil
}

func (f *foreignFirewall) closeLegacy() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	program, err := legacyProgram()
	if program == "" || err != nil {
		return err
	}
	for _, r := range f.legacyRules() {
		for iptables(ctx, program, "-C", r) == nil {
			if err := iptables(ctx, program, "-D", r); err != nil {
				return err
			}
		}
	}
	return nil
}

// legacyProgram returns the program that manages the old filter table, "" if that is not loaded.
func legacyProgram() (string, error) {
	b, err := os.ReadFile(legacyTables)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if !slices.Contains(strings.Fields(string(b)), "filter") {
		return "", nil
	}
	for _, name := range []string{"iptables-legacy", "iptables"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("iptables filter rules are in force, but there is no iptables program to add ours: apt-get install iptables")
}

// iptables runs one command on a rule, waiting for other users of the table.
func iptables(ctx context.Context, program, command string, rule []string) error {
	args := append([]string{"-w", "5", command}, rule...)
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
