package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"
	"unicode"

	"github.com/tonistiigi/fsutil"

	"kiln/internal/run"
	"kiln/internal/solve"
)

// A Source is the tree of files that a run works on.
type Source interface {
	fsutil.FS
	// Guard returns a context that ends, with the reason as its cause, when a file cannot be read:
	// BuildKit itself would wait for it for ever.
	Guard(ctx context.Context) (guarded context.Context, stop func())
	// Key says where the tree comes from; it stays the same from one commit or upload to the next.
	Key() string
	// ReadFile returns the content of a regular file of at most limit bytes, without following links. A
	// file that is not there is fs.ErrNotExist.
	ReadFile(ctx context.Context, name string, limit int64) ([]byte, error)
}

// An OpenRequest names the source of a run.
type OpenRequest struct {
	Context string // as in run.Spec
	Ref     string // as in run.Spec
	// Commit is built instead of what the context's ref stands for now, unless the context names a commit.
	Commit string
	// Scope separates sources of different trust: nothing that is kept of one is used for another.
	Scope string
	// Credentials returns the user and password for a registry, both empty for anonymous; without a user
	// the password is an identity token.
	Credentials func(host string) (user, password string)
	// Registry is the token for contexts in the co-located registry, where that is in another process.
	Registry string
	// Token is the secret to show the server of the context, empty for none.
	Token string
	// Stranger says that somebody from outside has chosen the context: no credential of the server opens it.
	Stranger bool
}

// An Origin says what a source is a state of.
type Origin struct {
	Repository string // URL, without credentials
	Ref        string // in full, if one was resolved
	Commit     string
	Subdir     string
	Author     string
	Title      string    // first line of the commit's message
	Time       time.Time // of the commit, zero if it is not known
}

// An Originated source is a commit of a repository.
type Originated interface{ Origin() Origin }

// A Warning source has something to say that a user should know. Some of it is known only after files
// have been read.
type Warning interface{ Warnings() []string }

const (
	maxTaskFile = 1 << 20 // bytes of a task or values file in a context
	maxTitle    = 120     // bytes of a commit's title in a log
	shortCommit = 12
)

// taskNames are the names of a task file that the run does not name.
var taskNames = []string{"acr-task.yaml", "acb.yaml"}

// openSource opens the run's source and says in the log what it is. A run without a source has none.
func (a *attempt) openSource(ctx context.Context) (Source, error) {
	spec := a.run.Spec
	if spec.Context == "" {
		return nil, nil
	}
	src, err := a.w.Open(ctx, OpenRequest{Context: spec.Context, Ref: spec.Ref, Commit: a.run.Cause.Commit,
		Scope: a.scope(), Credentials: a.credentials, Registry: a.tokens.Publish, Token: a.secrets.Context})
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	if s, ok := src.(Originated); ok {
		a.origin = s.Origin()
		a.origin.Ref = cmp.Or(a.origin.Ref, spec.Ref)
		a.logs.say("", "%s", a.origin)
		a.reports.source(a.origin)
	}
	a.warnings(src)
	return src, nil
}

// warnings logs what a source has to say and has not said yet.
func (a *attempt) warnings(src Source) {
	s, ok := src.(Warning)
	if !ok {
		return
	}
	all := s.Warnings()
	for _, w := range all[min(a.warned, len(all)):] {
		a.logs.say("", "warning: %s", oneLine(w))
	}
	a.warned = len(all)
}

// String describes the origin in one line, as a run's log has it.
func (o Origin) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "source %s", o.Repository)
	if o.Subdir != "" {
		fmt.Fprintf(&b, " in %s", o.Subdir)
	}
	if o.Ref != "" {
		fmt.Fprintf(&b, ", %s", strings.TrimPrefix(strings.TrimPrefix(o.Ref, "refs/heads/"), "refs/"))
	}
	fmt.Fprintf(&b, ", commit %s", o.Commit[:min(len(o.Commit), shortCommit)])
	if o.Title != "" {
		fmt.Fprintf(&b, " %q", clip(oneLine(o.Title), maxTitle))
	}
	if o.Author != "" {
		fmt.Fprintf(&b, " by %s", clip(oneLine(o.Author), maxTitle))
	}
	return b.String()
}

// oneLine returns s without control characters: others have written it.
func oneLine(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s))
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}

// readTaskFile takes the task file, and the values file if there is one, from the context.
func (a *attempt) readTaskFile(ctx context.Context, src Source) error {
	f := a.run.Spec.TaskFile
	if f == nil || !f.FromContext {
		return nil
	}
	if src == nil {
		return &planError{fmt.Errorf("task file %q: %w", f.Name, solve.ErrNoSource)}
	}
	read := *f // the run's record is not changed
	read.FromContext = false
	names := []string{f.Name}
	if f.Name == "" {
		names = taskNames
	}
	var err error
	if read.Name, read.Content, err = a.readOneOf(ctx, src, "task file", names); err != nil {
		return err
	}
	if f.ValuesName != "" {
		if read.ValuesName, read.Values, err = a.readOneOf(ctx, src, "values file", []string{f.ValuesName}); err != nil {
			return err
		}
	}
	a.run.Spec.TaskFile = &read
	return nil
}

// readOneOf returns the first of the named files that is in the source.
func (a *attempt) readOneOf(ctx context.Context, src Source, what string, names []string) (name string, content []byte, err error) {
	for _, name = range names {
		if err = insideSource(name); err == nil {
			content, err = src.ReadFile(ctx, name, maxTaskFile)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	switch {
	case err == nil:
		return name, content, nil
	case ctx.Err() != nil:
		return "", nil, context.Cause(ctx)
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("%s %s: is not in %s", what, quoted(names), a.where())
	default:
		err = fmt.Errorf("%s %q in %s: %w", what, name, a.where(), err)
	}
	return "", nil, &planError{err}
}

// aliasFile reads a file that alias.src names: from the working directory of the request if it is there, else from
// the source.
func (a *attempt) aliasFile(ctx context.Context, name string) ([]byte, error) {
	if strings.Contains(name, "://") {
		return nil, errors.New("files of other hosts are not read; copy it into the context")
	}
	for _, dir := range []string{a.run.Spec.TaskFile.WorkingDirectory, ""} {
		file := strings.TrimPrefix(path.Join(dir, name), workspace+"/")
		if err := insideSource(file); err != nil {
			return nil, err
		}
		if content, err := a.src.ReadFile(ctx, file, maxTaskFile); !errors.Is(err, fs.ErrNotExist) {
			return content, err
		}
	}
	return nil, fmt.Errorf("is not in %s", a.where())
}

func quoted(names []string) string {
	list := make([]string, len(names))
	for i, n := range names {
		list[i] = fmt.Sprintf("%q", n)
	}
	return strings.Join(list, " or ")
}

// insideSource refuses the name of a file that is not below the source's root.
func insideSource(name string) error {
	if !fs.ValidPath(strings.TrimPrefix(name, "./")) || name == "." {
		return errors.New("is no path inside the context")
	}
	return nil
}

// where names the source in messages.
func (a *attempt) where() string {
	if a.origin.Commit == "" {
		return "the context"
	}
	where := a.origin.Repository
	if a.origin.Subdir != "" {
		where += ", directory " + a.origin.Subdir
	}
	return fmt.Sprintf("%s at commit %s", where, a.origin.Commit[:min(len(a.origin.Commit), shortCommit)])
}

// checkFromContext checks what can be checked of a task file that only the worker will see.
func checkFromContext(f *run.TaskFileSpec) error {
	for _, name := range []string{f.Name, f.ValuesName} {
		if name == "" {
			continue
		}
		if err := insideSource(name); err != nil {
			return fmt.Errorf("file %q %w", name, err)
		}
	}
	if len(f.Content) > 0 || len(f.Values) > 0 {
		return errors.New("a task file of the context cannot be given with the request, too")
	}
	return nil
}
