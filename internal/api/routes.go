package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/auth"
)

// A Rule says who may use a route.
type Rule string

// Rules. A route without one is not served.
const (
	Readers Rule = "readers" // who has the role reader, or one that includes it
	Runners Rule = "runners"
	Authors Rule = "authors"
	Admins  Rule = "admins"
	// Images is for every token that is stored: the handler asks for the permission for a repository.
	Images Rule = "images"
)

// takes is the role that a rule asks for.
var takes = map[Rule]auth.Role{Readers: auth.RoleReader, Runners: auth.RoleRunner, Authors: auth.RoleAuthor, Admins: auth.RoleAdmin}

// admits returns nil if a principal may use routes of the rule.
func (rule Rule) admits(p auth.Principal) error {
	role, known := takes[rule]
	switch {
	case known && p.Role.Includes(role):
		return nil
	case rule == Images && (p.Role == auth.RoleToken || p.Role.Includes(auth.RoleReader)):
		return nil
	case rule == Images:
		return &apiclient.Error{Status: http.StatusForbidden, Code: apiclient.CodeForbidden,
			Message: fmt.Sprintf("%s may not use this part of the API", p.Name)}
	}
	return &apiclient.Error{Status: http.StatusForbidden, Code: apiclient.CodeForbidden,
		Message: fmt.Sprintf("%s may not use this part of the API: that takes the role %s", p.Name, role),
		Remedy:  "an administrator makes tokens that may: kiln token create NAME --role " + string(role)}
}

// A Route is a part of the API, and who may use it.
type Route struct {
	Pattern string // as http.ServeMux has them
	Rule    Rule
	handle  func(w http.ResponseWriter, r *http.Request) error
}

// Routes returns every route.
func (s *Server) Routes() []Route {
	const (
		run   = apiclient.PathRuns + "/{id}"
		task  = apiclient.PathTasks + "/{name}"
		event = apiclient.PathEvents + "/{seq}"
	)
	return append([]Route{
		{"GET " + apiclient.PathStatus, Readers, s.status},
		{"POST " + apiclient.PathRuns, Authors, s.submit},
		{"GET " + apiclient.PathRuns, Readers, s.list},
		{"GET " + run, Readers, s.show},
		{"GET " + run + "/log", Readers, s.log},
		{"GET " + run + "/why", Readers, s.why},
		{"POST " + run + "/cancel", Runners, s.cancel},
		{"POST " + run + "/rerun", Runners, s.rerun},
		{"POST " + run + "/approve", Runners, s.approve},
		{apiclient.PathContexts, Authors, s.contexts},
		{apiclient.PathContexts + "/", Authors, s.contexts},
		{"GET " + apiclient.PathTasks, Readers, s.listTasks},
		{"POST " + apiclient.PathTasks, Authors, s.createTask},
		{"GET " + task, Readers, s.showTask},
		{"PUT " + task, Authors, s.replaceTask},
		{"DELETE " + task, Authors, s.deleteTask},
		{"GET " + task + "/runs", Readers, s.listTaskRuns},
		{"POST " + task + "/runs", Runners, s.runTask},
		{"GET " + task + "/decisions", Readers, s.listDecisions},
		{"GET " + apiclient.PathSecrets, Authors, s.listSecrets},
		{"PUT " + apiclient.PathSecrets + "/{name}", Authors, s.setSecret},
		{"DELETE " + apiclient.PathSecrets + "/{name}", Authors, s.removeSecret},
		{"GET " + apiclient.PathWhy, Readers, s.whyImage},
		{"GET " + apiclient.PathEvents, Readers, s.listEvents},
		{"POST " + event + "/replay", Admins, s.replayEvent},
		{"POST " + apiclient.PathReconcile, Admins, s.reconcile},
		{"POST " + apiclient.PathBackup, Admins, s.backup},
		{"GET " + apiclient.PathAudit, Admins, s.listAudit},
		{"GET " + apiclient.PathCache, Admins, s.showCache},
		{"POST " + apiclient.PathCachePrune, Admins, s.pruneCache},
	}, append(s.imageRoutes(), s.adminRoutes()...)...)
}

// imageRoutes are about what the co-located registry holds.
func (s *Server) imageRoutes() []Route {
	return []Route{
		{"GET " + apiclient.PathRepositories, Images, s.repositories},
		{"GET " + apiclient.PathManifests, Images, s.manifests},
		{"GET " + apiclient.PathReferrers, Images, s.referrers},
		{"GET " + apiclient.PathTags, Images, s.tags},
		{"POST " + apiclient.PathLock, Images, s.lock},
		{"POST " + apiclient.PathRollback, Images, s.rollback},
		{"POST " + apiclient.PathDelete, Admins, s.deleteImage},
		{"POST " + apiclient.PathUntag, Admins, s.untag},
		{"POST " + apiclient.PathCollect, Admins, s.collect},
		{"POST " + apiclient.PathPurge, Admins, s.purge},
		{"POST " + apiclient.PathImport, Admins, s.importImage},
		{"POST " + apiclient.PathCheck, Admins, s.checkImages},
	}
}

// adminRoutes are about who may do what, and where facts come from and go to.
func (s *Server) adminRoutes() []Route {
	const (
		hook    = apiclient.PathHooks + "/{hook}"
		target  = apiclient.PathTargets + "/{target}"
		webhook = apiclient.PathWebhooks + "/{webhook}"
		token   = apiclient.PathTokens + "/{name}"
		worker  = apiclient.PathWorkers + "/{worker}"
	)
	return []Route{
		{"GET " + apiclient.PathWorkers, Admins, s.listWorkers},
		{"POST " + worker + "/drain", Admins, s.drainWorker},
		{"POST " + worker + "/undrain", Admins, s.undrainWorker},
		{"POST " + apiclient.PathTokens, Admins, s.createToken},
		{"GET " + apiclient.PathTokens, Admins, s.listTokens},
		{"GET " + token, Admins, s.showToken},
		{"DELETE " + token, Admins, s.deleteToken},
		{"POST " + apiclient.PathHooks, Admins, s.createHook},
		{"GET " + apiclient.PathHooks, Admins, s.listHooks},
		{"GET " + hook, Admins, s.showHook},
		{"DELETE " + hook, Admins, s.deleteHook},
		{"POST " + hook + "/rotate", Admins, s.rotateHook},
		{"POST " + hook + "/enable", Admins, s.switchHook(false)},
		{"POST " + hook + "/disable", Admins, s.switchHook(true)},
		{"POST " + hook + "/check", Admins, s.checkHook},
		{"POST " + apiclient.PathTargets, Admins, s.addTarget},
		{"GET " + apiclient.PathTargets, Admins, s.listTargets},
		{"GET " + apiclient.PathTargets + "/failed", Admins, s.listFailed},
		{"POST " + apiclient.PathTargets + "/retry", Admins, s.retryFailed},
		{"GET " + target, Admins, s.showTarget},
		{"DELETE " + target, Admins, s.removeTarget},
		{"POST " + target + "/test", Admins, s.testTarget},
		{"POST " + apiclient.PathWebhooks, Admins, s.createWebhook},
		{"GET " + apiclient.PathWebhooks, Admins, s.listWebhooks},
		{"GET " + webhook, Admins, s.showWebhook},
		{"PATCH " + webhook, Admins, s.updateWebhook},
		{"DELETE " + webhook, Admins, s.deleteWebhook},
		{"POST " + webhook + "/ping", Admins, s.pingWebhook},
		{"GET " + webhook + "/events", Admins, s.webhookEvents},
	}
}

// Handler returns the handler of everything under /api/. A route without a rule is not served.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, rt := range s.Routes() {
		if _, known := takes[rt.Rule]; known || rt.Rule == Images {
			mux.Handle(rt.Pattern, s.serve(rt))
		}
	}
	mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
			Message: fmt.Sprintf("no route %s %s", r.Method, r.URL.Path)})
	})
	return mux
}

type callerKey struct{}

// serve lets through who a route's rule admits, bounds the body, answers with the error that the route returns, tells
// how long that took and records what came of it.
func (s *Server) serve(rt Route) http.Handler {
	upload := strings.HasPrefix(rt.Pattern, apiclient.PathContexts) // bounds its bodies itself
	return http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		w := &timed{ResponseWriter: out, begin: time.Now()}
		if !upload {
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		}
		c := &caller{}
		var err error
		if c.Principal, err = s.caller(r); err == nil {
			err = rt.Rule.admits(c.Principal)
		}
		if err == nil {
			err = rt.handle(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
		}
		code := ""
		if err != nil {
			code = s.refuse(w, r, err)
		}
		s.record(r, rt, c, cmp.Or(w.status, http.StatusOK), code)
	})
}

// refuse answers with an error, and returns its code.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) string {
	e := s.wireError(err)
	switch e.Status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="kiln"`)
	case http.StatusInternalServerError:
		s.Log.Error("request not answered", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	writeError(w, e)
	return e.Code
}

// caller returns who has sent a request, and an error if that is nobody in particular.
func (s *Server) caller(r *http.Request) (auth.Principal, error) {
	p, err := s.Keys.FromRequest(r, time.Now())
	if errors.Is(err, auth.ErrToken) || err == nil && p.Role == auth.RoleAnonymous {
		err = &apiclient.Error{Status: http.StatusUnauthorized, Code: apiclient.CodeUnauthorized,
			Message: "token is missing, wrong or expired",
			Remedy:  "set KILN_TOKEN to a token that `kiln token create` has made, or to the content of " + auth.AdminTokenFile + " in the server's data directory"}
	}
	return p, err
}

// contexts takes in uploaded contexts.
func (s *Server) contexts(w http.ResponseWriter, r *http.Request) error {
	s.Contexts.ServeHTTP(w, r)
	return nil
}
