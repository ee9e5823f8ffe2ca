package auth

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/task"
)

// roles are those that a stored token may have, each may do what those before it may.
var roles = []Role{RoleReader, RoleRunner, RoleAuthor, RoleAdmin}

// Roles are the roles that a token may be given, the mightiest first.
func Roles() []Role { return []Role{RoleAdmin, RoleAuthor, RoleRunner, RoleReader} }

// Includes reports whether a principal of role r may do what takes the other, which is one of Roles.
func (r Role) Includes(other Role) bool {
	has, takes := slices.Index(roles, r), slices.Index(roles, other)
	return takes >= 0 && has >= takes
}

// rolePermissions are what a token of a role has for a repository for which nothing else is said.
var rolePermissions = map[Role][]event.Permission{RoleAuthor: sets["push"], RoleRunner: sets["pull"], RoleReader: sets["pull"]}

// maxTasks bounds the patterns of one token.
const maxTasks = 64

// taskPattern is what Tasks of a token have: a name of a task or a secret, or the beginning of names.
var taskPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\*?$|^\*$`)

// SetRole gives a token what a role is for: a grant without permissions gets those of the role, and so do all
// repositories but kiln's own if there is no grant. It refuses what means nothing. The empty role is one of a
// token for nothing but images.
func SetRole(t *event.Token, role Role) error {
	t.Role = string(role)
	switch {
	case role == "" && len(t.Tasks) > 0:
		return errors.New("tasks are for tokens with a role")
	case role == "":
	case !slices.Contains(roles, role):
		return fmt.Errorf("%q is no role: want one of %s", role, rolesText())
	case role == RoleAdmin && len(t.Grants)+len(t.Tasks) > 0:
		return errors.New("an administrator may do everything: there are no limits by repositories or tasks")
	case role == RoleAdmin:
		t.Grants = []event.Grant{}
		return nil
	case len(t.Grants) == 0:
		t.Grants = []event.Grant{{Repository: "*"}}
	}
	if len(t.Tasks) > maxTasks {
		return fmt.Errorf("%d tasks or patterns, want at most %d", len(t.Tasks), maxTasks)
	}
	for _, p := range t.Tasks {
		if !taskPattern.MatchString(p) {
			return fmt.Errorf("task %.80q: want the name of a task, or its beginning with a * behind", p)
		}
	}
	for i := range t.Grants {
		if len(t.Grants[i].Permissions) == 0 {
			t.Grants[i].Permissions = rolePermissions[role]
		}
	}
	grants, err := NormalizeAll(t.Grants)
	t.Grants = grants
	return err
}

func rolesText() string {
	var words []string
	for _, r := range Roles() {
		words = append(words, string(r))
	}
	return strings.Join(words, ", ")
}

// Limited reports whether there are tasks that are none for p.
func (p Principal) Limited() bool { return len(p.Tasks) > 0 }

// SeesTask reports whether there is a task of that name for p. The empty name, of what belongs to no task, is
// one only for who is not limited.
func (p Principal) SeesTask(name string) bool {
	return !p.Limited() || name != "" && slices.ContainsFunc(p.Tasks, func(pattern string) bool {
		return run.Covers(task.NameKey(pattern), task.NameKey(name))
	})
}

// Limits are what runs may do that p is the author of; nil if p is an administrator. The patterns of its tasks
// hold for names of secrets, too.
func (p Principal) Limits() *run.Limits {
	if p.Role == RoleAdmin {
		return nil
	}
	l := &run.Limits{By: p.Name, Secrets: p.Tasks}
	if !p.Limited() {
		l.Secrets = []string{"*"}
	}
	for _, g := range p.Grants {
		if slices.Contains(g.Permissions, event.ContentRead) {
			l.Pull = append(l.Pull, g.Repository)
		}
		if slices.Contains(g.Permissions, event.ContentWrite) {
			l.Push = append(l.Push, g.Repository)
		}
	}
	return l
}
