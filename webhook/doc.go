// Package webhook takes deliveries of forges and registries: it authenticates one, decodes it into
// events, has them stored, and answers. It decides nothing; what an event leads to is for others.
//
// # What it promises
//
//   - No byte of a body is parsed before its signature or token has been checked, over the bytes as
//     they came and in constant time. A hook has one secret, or two while one replaces the other. An
//     empty secret admits nobody, an empty or cut signature neither.
//   - 202 is answered after JetStream has stored the delivery: each of its events or, while more than two
//     deliveries are in hand, the delivery as it came, in one message with others. If that cannot be done,
//     the answer is 503 with Retry-After; what was stored before is found again when the sender repeats.
//   - Intake.Run makes of deliveries that are stored as they came the events that they would have been at
//     once. It begins when there have not been that many for 5 ms, or 2 s after they were stored, and may
//     be killed at any moment. One that cannot be decoded becomes an event of its own, delivery.rejected.
//   - A delivery does not overtake one that this process has accepted before.
//   - A delivery that is repeated makes no second event: the event's ID is a hash of the sender's
//     delivery ID and of the facts (repository, ref, before, after ...). Neither alone would do: forges
//     reuse IDs in their samples, and the same facts come true again when a ref goes back and forth. A
//     sender without IDs and times (Quay) makes a new event each time: events are hints, so a
//     repeated one is harmless, and a lost one is not.
//   - An unknown hook, a hook of another provider and a wrong signature have the same answer, 404, and
//     cost the same time.
//   - A body is at most 25 MB, all bodies in hand at most 256 MB.
//   - The delivery is kept in its first event, for a replay: the headers that say what it is, and the
//     body, unless that is above 1 MiB even when compressed, or repeats a secret of the hook. Other
//     headers are not kept.
//
// A Handler is safe for concurrent use and keeps nothing between deliveries but memory to use again.
//
// # Answers
//
//	200  a ping, or a delivery that is of no interest; the body says why
//	202  all events are stored, and named; or the delivery is, to be decoded later: {"accepted":true}
//	400  the body is not what the provider sends
//	404  no such hook, or not authenticated
//	405  not a POST
//	413  the body is too large
//	422  the delivery cannot be mapped: the hook lacks its registry's name
//	503  the events cannot be stored now; Retry-After says when to try again
//
// # Providers
//
//	github        GitHub, GitHub Enterprise: X-Hub-Signature-256. The older SHA-1 signature is never
//	              accepted. Packages pushed to ghcr.io come by the same hook.
//	gitlab        X-Gitlab-Token, or the newer webhook-signature, which then alone counts
//	gitea         Gitea, Gogs: X-Gitea-Signature, X-Gogs-Signature or X-Hub-Signature-256
//	forgejo       X-Forgejo-Signature, or those of Gitea
//	bitbucket     Bitbucket Cloud and Data Center: X-Hub-Signature with sha256
//	azure-devops  a token
//	generic       see below
//	distribution  the notifications of a CNCF Distribution registry: a token
//	acr           Azure Container Registry: a token
//	harbor        Harbor's default payload: a token
//	dockerhub     Docker Hub: a token, in the URL
//	quay          Quay: a token, in the URL
//	cloudevents   CloudEvents, single or in batches, of zot, Harbor and kiln: a token, or webhook-signature
//
// A token is the hook's secret. It is sent as the password of Basic authentication with any user name,
// as "Authorization: Bearer SECRET", as the whole Authorization header, or as X-Kiln-Token; where the
// provider can set no header, as "?token=SECRET". Use TLS: a token is not bound to the body.
//
// # The generic hook
//
// Anything that can compute an HMAC can tell kiln of a push. The body is a JSON object, POSTed to
// /hooks/generic/HOOK:
//
//	{
//	  "type": "git.pushed",
//	  "repository": "https://git.example.com/team/app.git",
//	  "ref": "refs/heads/main",
//	  "before": "9b1c...",               optional: the commit before the push
//	  "after": "4f2e...",                optional: the commit now; 40 zeros for a deleted ref
//	  "files": ["cmd/main.go"],          optional: all files that differ; absent means not known
//	  "message": "cmd: say hello",       optional: the message of the commit now
//	  "pusher": "jane"                   optional
//	}
//
//	{
//	  "type": "registry.pushed",
//	  "image": "registry.example.com/team/base:1",
//	  "digest": "sha256:..."             optional
//	}
//
// The signature is X-Hub-Signature-256: "sha256=" and the HMAC-SHA256 of the body in hex, with the
// secret as the key. The header X-Kiln-Delivery may carry an ID, at most 128 characters, the same
// whenever a delivery is repeated. As a post-receive hook of a bare repository:
//
//	while read before after ref; do
//	  body=$(printf '{"type":"git.pushed","repository":"%s","ref":"%s","before":"%s","after":"%s"}' \
//	    "$URL" "$ref" "$before" "$after")
//	  sig=$(printf %s "$body" | openssl dgst -sha256 -hmac "$SECRET" -r | cut -d' ' -f1)
//	  printf %s "$body" | curl -fsS --retry 5 --data-binary @- -H 'Content-Type: application/json' \
//	    -H "X-Kiln-Delivery: $ref-$before-$after-$(date +%s)" \
//	    -H "X-Hub-Signature-256: sha256=$sig" "$KILN/hooks/generic/$HOOK"
//	done
//
// Instead, a sender may sign as Standard Webhooks says: webhook-id, webhook-timestamp (within five
// minutes of kiln's clock) and webhook-signature, "v1," and the base64 HMAC-SHA256 of
// "id.timestamp.body". A secret that begins with whsec_ is then the base64 form of the key.
package webhook
