package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"kiln/internal/apiclient"
	"kiln/internal/run"
)

const runHelp = `Execute a task file: its build, cmd and push steps.

The task is -f FILE, by its path in CONTEXT or else from here, or acr-task.yaml, or acb.yaml in
CONTEXT. CONTEXT is the directory the steps work on; /dev/null stands for none. It may be a git
repository that the server fetches, URL[#REF[:DIRECTORY]]; FILE is a path in it then.

Give a secret as --set-secret K and its value in the environment variable K: a value on the command
line is visible to every user of this host and stays in the shell's history.`

// noContext is how a user says that a task needs no source.
const noContext = "/dev/null"

type taskFlags struct {
	runFlags
	file       string
	cmd        string
	set        []string
	setSecrets []string
	values     string
	outside    outsideFlags
	privileged bool
}

func newRunCommand(c *cli) *cobra.Command {
	var f taskFlags
	cmd := &cobra.Command{
		Use:               "run [flags] CONTEXT|/dev/null",
		Short:             "Execute a task file",
		Long:              runHelp,
		Example:           "  kiln run .\n  kiln run -f ci/task.yaml --set tag=1.2 --set-secret TOKEN .\n  kiln run --cmd 'alpine echo hello' /dev/null",
		Args:              argument("CONTEXT, a directory, git repository or /dev/null,"),
		ValidArgsFunction: completeDirectory,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("cmd") && cmd.Flags().Changed("file") {
				return usagef(cmd.CommandPath()+" --help", "--cmd and --file exclude each other")
			}
			return c.runTask(cmd.Context(), f, cmd.Flags().Changed("cmd"), args[0])
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVarP(&f.file, "file", "f", "", "task file; - reads standard input (default CONTEXT/acr-task.yaml, then CONTEXT/acb.yaml)")
	fl.StringVar(&f.cmd, "cmd", "", "execute this one command, `'IMAGE [ARG]...'`, instead of a task file")
	fl.StringArrayVar(&f.set, "set", nil, "set a value `K=V` for .Values.K; may be repeated")
	fl.StringArrayVar(&f.setSecrets, "set-secret", nil, "set a secret value `K[=V]` for .Values.K; without =V, the safe form, it takes the environment variable K; may be repeated")
	fl.StringVar(&f.values, "values", "", "file of values, in YAML; found as the task file is")
	f.outside.add(fl)
	fl.BoolVar(&f.privileged, "allow-privileged", false, "let steps have privileged containers; the server must be started with the same option")
	f.addPlatform(cmd, "platform to build for, `os[/arch[/variant]]` (default the worker's)")
	f.addRest(cmd)
	return cmd
}

func (c *cli) runTask(ctx context.Context, f taskFlags, single bool, dir string) error {
	err := f.check(false)
	if err != nil {
		return err
	}
	var remote bool
	if dir == noContext {
		dir = ""
	} else if remote, err = checkSource(dir); err != nil {
		return err
	}
	secrets, err := c.secrets("--set-secret", f.setSecrets)
	if err != nil {
		return err
	}
	submit := apiclient.Submit{Spec: run.Spec{Platform: f.platform, Timeout: f.timeout, Privileged: f.privileged}, Secrets: secrets}
	if remote {
		submit.Spec.Context, dir = dir, ""
	}
	var task *run.TaskFileSpec
	switch {
	case single:
		task, err = commandTask(f.cmd, f.timeout)
	case remote:
		task, err = c.remoteTask(f)
	default:
		task, err = c.findTask(f.file, dir)
	}
	if err != nil {
		return err
	}
	if err := addValues(task, f, dir); err != nil {
		return err
	}
	task.Env, task.Network, task.WorkingDirectory = f.outside.env, f.outside.network, f.outside.workdir
	submit.Spec.TaskFile = task
	return c.start(ctx, job{dir: dir, submit: submit, flags: f.runFlags})
}

// addValues sets the values of a task: those of --set, and those of a file.
func addValues(task *run.TaskFileSpec, f taskFlags, dir string) error {
	for _, kv := range f.set {
		k, v, _ := strings.Cut(kv, "=")
		if k == "" {
			return usagef("--set K=V", "--set %q: no name", kv)
		}
		task.Set = append(task.Set, k+"="+v)
	}
	if f.values == "" {
		return nil
	}
	if task.FromContext {
		task.ValuesName = strings.TrimPrefix(f.values, "./")
		return nil
	}
	path, err := findInput("values file", f.values, dir)
	if err != nil {
		return err
	}
	task.ValuesName = f.values
	task.Values, err = readFile(path)
	return err
}

// secrets returns the values of --set-secret by name.
func (c *cli) secrets(flag string, flags []string) (map[string]string, error) {
	kvs, err := c.keyValues(flag, flags)
	if err != nil || len(kvs) == 0 {
		return nil, err
	}
	m := make(map[string]string, len(kvs))
	for _, kv := range kvs {
		k, v, _ := strings.Cut(kv, "=")
		m[k] = v
	}
	return m, nil
}

// taskNames are the names of a task file that is not named, in order of preference.
var taskNames = []string{"acr-task.yaml", "acb.yaml"}

// findTask reads the task file that a user names, or the default one.
func (c *cli) findTask(file, dir string) (*run.TaskFileSpec, error) {
	if file == "-" {
		b, err := readInput("standard input", c.In)
		if err == nil && len(b) == 0 {
			err = usagef("", "the task on standard input is empty")
		}
		return &run.TaskFileSpec{Name: "stdin", Content: b}, err
	}
	if file == "" {
		if dir == "" {
			return nil, usagef("-f FILE or --cmd 'IMAGE [ARG]...'", "without a context there is no default task file")
		}
		for _, name := range taskNames {
			if isFile(filepath.Join(dir, name)) {
				file = name
				break
			}
		}
		if file == "" {
			return nil, usagef("-f FILE, or \"kiln build\" for a Dockerfile", "%s: neither %s", dir, strings.Join(taskNames, " nor "))
		}
	}
	path, err := findInput("task file", file, dir)
	if err != nil {
		return nil, err
	}
	b, err := readFile(path)
	return &run.TaskFileSpec{Name: file, Content: b}, err
}

// findInput returns the path of a file that is named relative to the context or else to the current
// directory.
func findInput(what, file, dir string) (string, error) {
	if dir != "" && !filepath.IsAbs(file) {
		if path := filepath.Join(dir, file); isFile(path) {
			return path, nil
		}
	}
	fi, err := os.Stat(file)
	if err != nil || fi.IsDir() {
		where := "here"
		if dir != "" {
			where = fmt.Sprintf("in %s or here", dir)
		}
		return "", usagef("", "%s %q: no such file %s", what, file, where)
	}
	return file, nil
}
