package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// An environment is what a command has of the world outside.
type environment struct {
	In     io.Reader
	Out    io.Writer
	Err    io.Writer
	Lookup func(name string) (value string, set bool) // environment variables
}

// A cli holds the environment and the global flags. Every command has it.
type cli struct {
	environment
	server string
	data   string
	ca     string
	quiet  bool
}

// execute runs a command line and returns its exit code.
func execute(ctx context.Context, args []string, env environment) int {
	c := &cli{environment: env}
	root := newRootCommand(c)
	root.SetArgs(args)
	return c.report(root.ExecuteContext(ctx))
}

func newRootCommand(c *cli) *cobra.Command {
	root := &cobra.Command{
		Use:   "kiln",
		Short: "Build, test and publish container images",
		Long: "kiln runs tasks: it builds images with BuildKit, runs commands in them and publishes them.\n" +
			"Start a server with \"kiln serve\", then build a directory with \"kiln build -t NAME .\".",
		Args:          unknownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(c.In)
	root.SetOut(c.Out)
	root.SetErr(c.Err)
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(flagError)

	g := root.PersistentFlags()
	g.SortFlags = false
	g.StringVar(&c.server, "server", "", "address of the server, such as http://127.0.0.1:7070 (default $KILN_SERVER, else that of the server on --data)")
	g.StringVar(&c.ca, "ca", "", "`FILE` with certificates in PEM, beside the system's, that an https server's may be signed by (default $KILN_CA)")
	g.StringVar(&c.data, "data", "", "data directory of the server on this host (default $KILN_DATA, else /var/lib/kiln for root, else ~/.local/share/kiln)")
	g.BoolVarP(&c.quiet, "quiet", "q", false, "show no progress")

	for _, add := range commands {
		root.AddCommand(add(c))
	}
	return root
}

// commands are the subcommands, in the order of their files' importance.
var commands = []func(*cli) *cobra.Command{
	newBuildCommand,
	newRunCommand,
	newCheckCommand,
	newRenderCommand,
	newPlanCommand,
	newSchemaCommand,
	newLogsCommand,
	newRunsCommand,
	newShowCommand,
	newCancelCommand,
	newRerunCommand,
	newApproveCommand,
	newWhyCommand,
	newWhyNotCommand,
	newEventsCommand, newAuditCommand,
	newReplayCommand,
	newReconcileCommand,
	newHookCommand,
	newNotifyCommand,
	newWebhookCommand,
	newTaskCommand,
	newApplyCommand,
	newSecretCommand,
	newTokenCommand,
	newRepoCommand,
	newManifestCommand,
	newTagCommand,
	newRollbackCommand,
	newImportCommand,
	newPurgeCommand,
	newGCCommand,
	newFsckCommand,
	newCacheCommand,
	newServeCommand,
	newWorkerCommand,
	newConfigCommand,
	newBuildkitdCommand,
	newCNICommand,
	newForwardCommand,
	newHealthCommand,
	newBackupCommand,
	newRestoreCommand,
	newDoctorCommand,
	newVersionCommand,
	newCompletionCommand,
}

// unknownCommand refuses arguments of the root command: each would be a command.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := &usageError{err: fmt.Errorf("unknown command %q", args[0]), try: "kiln --help"}
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	if name, ok := nearest(args[0], names); ok {
		err.try = "kiln " + name
	}
	return err
}

// flagError turns a mistake in a flag into a usage error that proposes the flag meant.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	usage := &usageError{err: err, try: cmd.CommandPath() + " --help"}
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() == "" {
		name := unknown.GetSpecifiedName()
		usage.err = fmt.Errorf("unknown flag --%s", name)
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if name, ok := nearest(name, names); ok {
			usage.try = "--" + name
		}
	}
	return usage
}

// argument accepts exactly one argument, which name describes.
func argument(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return usagef(cmd.CommandPath()+" --help", "%s is missing", name)
		case len(args) > 1:
			return usagef(cmd.CommandPath()+" --help", "%q: only one %s can be given", strings.Join(args[1:], " "), name)
		}
		return nil
	}
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef(cmd.CommandPath()+" --help", "unexpected argument %q", args[0])
	}
	return nil
}

// nearest returns the name that is most like s, if one is like it at all.
func nearest(s string, names []string) (string, bool) {
	best, distance := "", max(2, len(s)/3)+1
	for _, n := range names {
		d := editDistance(s, n)
		if len(s) >= 2 && strings.HasPrefix(n, s) {
			d = 1
		}
		if d < distance {
			best, distance = n, d
		}
	}
	return best, best != ""
}

// editDistance counts the insertions, deletions and replacements between a and b (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
