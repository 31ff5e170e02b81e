{{/* What all Pods of the chart share. */}}

{{- define "aios.podSecurity" -}}
serviceAccountName: {{ include "aios.serviceAccountName" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false # a Service's variables could be taken for settings: AIOS_PORT
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ quote . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "aios.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* Where a role's Pods go. Takes the role's values. */}}
{{- define "aios.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ quote . }}
{{- end }}
{{- end -}}

{{/* Spread over nodes and zones where there are several; a rollout's new Pods by themselves. Takes (root, component, pool). */}}
{{- define "aios.spread" -}}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "aios.selector" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end -}}

{{- define "aios.password" -}}
- name: {{ .as }}
  valueFrom:
    secretKeyRef: {name: {{ quote .auth.existingSecret }}, key: {{ quote .auth.passwordKey }}}
{{- end -}}

{{/* The variables that every role has. Takes the root. */}}
{{- define "aios.env" -}}
- name: AIOS_CONFIG
  value: /etc/aios/config.yaml
{{- if not .Values.redis.enabled }}
- name: AIOS_REDIS_URL
  {{- with .Values.externalRedis }}
  {{- if .existingSecret }}
  valueFrom:
    secretKeyRef: {name: {{ quote .existingSecret }}, key: {{ quote .urlKey }}}
  {{- else }}
  value: {{ quote .url }}
  {{- end }}
  {{- end }}
{{- else if .Values.redis.auth.existingSecret }}
{{ include "aios.password" (dict "as" "REDIS_PASSWORD" "auth" .Values.redis.auth) }}
- name: AIOS_REDIS_URL
  value: redis://:$(REDIS_PASSWORD)@{{ include "aios.fullname" . }}-redis:6379/0
{{- else }}
- name: AIOS_REDIS_URL
  value: redis://{{ include "aios.fullname" . }}-redis:6379/0
{{- end }}
{{- with .Values.otlpEndpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ quote . }}
{{- end }}
{{- end -}}

{{/* Takes (root, key: the role's file in the ConfigMap, role: its values). */}}
{{- define "aios.volumes" -}}
- name: config
  configMap:
    name: {{ include "aios.fullname" .root }}-config
    items: [{key: {{ .key }}, path: config.yaml}]
- name: tmp
  emptyDir: {}
{{- with .role.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "aios.mounts" -}}
- {name: config, mountPath: /etc/aios, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- with .extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* How long a Pod may take to go: its sleep, its drain, and the ten seconds after which it never will.
     Takes (settings, sleep). */}}
{{- define "aios.grace" -}}
{{- add .sleep (int (ceil (default 1 .settings.drain_timeout_s))) 10 -}}
{{- end -}}
