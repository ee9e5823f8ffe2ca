package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
)

// parts of a name that an argument may have.
type parts int

const (
	repositoryOnly parts = iota
	withTag
	withReference // a tag or a digest
)

// imageArgument reads REPOSITORY, REPOSITORY:TAG or REPOSITORY@DIGEST. The name of the server's registry
// may be in front.
func imageArgument(ctx context.Context, client *apiclient.Client, arg string, want parts) (apiclient.Image, error) {
	name := arg
	if host, rest, ok := strings.Cut(arg, "/"); ok && strings.Contains(host, ":") {
		if err := checkOwnRegistry(ctx, client, host); err != nil {
			return apiclient.Image{}, err
		}
		name = rest
	}
	i := apiclient.Image{Repository: name}
	if repository, digest, ok := strings.Cut(name, "@"); ok {
		i = apiclient.Image{Repository: repository, Reference: digest}
	} else if repository, tag, ok := strings.Cut(name, ":"); ok {
		i = apiclient.Image{Repository: repository, Reference: tag}
	}
	isDigest := strings.Contains(i.Reference, ":")
	switch {
	case want == repositoryOnly && i.Reference != "":
		return i, usagef(i.Repository, "%q: want the name of a repository alone", arg)
	case want == withTag && (i.Reference == "" || isDigest):
		return i, usagef(i.Repository+":TAG", "%q: want REPOSITORY:TAG", arg)
	case want == withReference && i.Reference == "":
		return i, usagef(i.Repository+":TAG, or "+i.Repository+"@DIGEST", "%q: want REPOSITORY:TAG or REPOSITORY@DIGEST", arg)
	}
	return i, nil
}

// checkOwnRegistry refuses the name of another registry: what is meant there is not what this server has.
func checkOwnRegistry(ctx context.Context, client *apiclient.Client, host string) error {
	st, err := client.Status(ctx)
	if err != nil {
		return err
	}
	if u, err := url.Parse(client.BaseURL); host == st.Registry || err == nil && host == u.Host {
		return nil
	}
	return usagef("the name without it", "%q is not the registry of this server, which is %s", host, st.Registry)
}

// imageFlags are what commands about images have in common.
type imageFlags struct {
	output outputFlag
	yes    bool
	dryRun bool
}

func newImageFlags() *imageFlags {
	return &imageFlags{output: outputFlag{allowed: []string{"table", "json"}, value: "table"}}
}

func (f *imageFlags) add(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().SortFlags = false
	cmd.Flags().VarP(&f.output, "output", "o", "format")
	return cmd
}

// deletes adds the flags of what deletes.
func (f *imageFlags) deletes(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().SortFlags = false
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "delete it; otherwise only show what would be deleted")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "only show what would be deleted")
	return f.add(cmd)
}

// commandGroup is a command that only has commands below it.
func commandGroup(use, short, long string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(below...)
	return cmd
}

// delete shows what a deletion takes along, and deletes it if the user has said yes.
func (c *cli) delete(ctx context.Context, arg string, want parts, f *imageFlags, again string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	image, err := imageArgument(ctx, client, arg, want)
	if err != nil {
		return err
	}
	d, err := client.Delete(ctx, apiclient.Delete{Image: image, DryRun: f.dryRun || !f.yes})
	if err != nil {
		return err
	}
	if f.output.json() {
		err = c.printJSON(d)
	} else {
		c.printDeletion(d)
	}
	if err == nil && d.DryRun && !f.dryRun {
		err = usagef(again+" --yes "+arg, "nothing was deleted")
	}
	return err
}

func (c *cli) printDeletion(d apiclient.Deletion) {
	for _, m := range d.Manifests {
		why := ""
		switch m.Why {
		case "child":
			why = "  (nothing else names it)"
		case "referrer":
			why = "  (is about one of them)"
		case "untagged":
			why = "  (untagged)"
		}
		fmt.Fprintf(c.Out, "%s@%s%s\n", render.Clean(m.Repository), render.Clean(m.Digest), why)
		for _, t := range m.Tags {
			fmt.Fprintf(c.Out, "%s:%s\n", render.Clean(m.Repository), render.Clean(t))
		}
	}
	verb := "deleted; collection frees"
	if d.DryRun {
		verb = "would be deleted, which frees"
	}
	fmt.Fprintf(c.Out, "%s and %s %s %s\n", count(d.Count, "manifest"), count(d.Tags, "tag"), verb, sizeText(d.Frees))
}

// count says how many of a thing there are.
func count(n int64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

const lockHelp = "A lock refuses something to everybody, also to runs and to purge:\n" +
	"  write    it is neither changed nor deleted\n" +
	"  delete   it is not deleted; a tag may still move\n" +
	"  read     it is not pulled\n" +
	"  list     clients do not see it in lists\n" +
	"A lock of a repository holds for everything in it."

// newLockCommands makes the commands that set and take off locks. NAME is what the argument is called.
func newLockCommands(c *cli, name string, want parts) []*cobra.Command {
	one := func(verb, short, rest string, all []string, request func(*apiclient.Lock, []string)) *cobra.Command {
		f := newImageFlags()
		return f.add(&cobra.Command{
			Use:   verb + " " + name + " [write|delete|read|list]... [flags]",
			Short: short,
			Long:  short + rest + "\n\n" + lockHelp,
			Args:  cobra.ArbitraryArgs,
			RunE: func(cmd *cobra.Command, args []string) error {
				if len(args) == 0 {
					return usagef(cmd.CommandPath()+" --help", "%s is missing", name)
				}
				names := args[1:]
				if len(names) == 0 {
					names = all
				}
				return c.lock(cmd.Context(), args[0], want, f, func(l *apiclient.Lock) { request(l, names) })
			},
		})
	}
	return []*cobra.Command{
		one("lock", "Lock it", ", by default against changing and deleting.", []string{"write"}, func(l *apiclient.Lock, names []string) { l.Set = names }),
		one("unlock", "Take off locks", ", by default all.", []string{"write", "delete", "read", "list"}, func(l *apiclient.Lock, names []string) { l.Unset = names }),
	}
}

func (c *cli) lock(ctx context.Context, arg string, want parts, f *imageFlags, request func(*apiclient.Lock)) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	image, err := imageArgument(ctx, client, arg, want)
	if err != nil {
		return err
	}
	l := apiclient.Lock{Image: image}
	request(&l)
	now, err := client.Lock(ctx, l)
	switch {
	case err != nil:
		return err
	case f.output.json():
		return c.printJSON(now)
	}
	fmt.Fprintf(c.Out, "%s: %s\n", render.Clean(arg), locksText(now.Locks))
	return nil
}

// locksText names locks.
func locksText(locks []string) string {
	if len(locks) == 0 {
		return "not locked"
	}
	return "locked: " + strings.Join(locks, ", ")
}
